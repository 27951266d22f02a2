"""Cost tables measured on real devices, as CSV; README.md says what, where and when."""
