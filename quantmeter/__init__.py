"""The front door: three verbs, the command line and the report page."""
