"""Sizes of caches from captured /sys, and the sweep that empties them."""

from pathlib import Path

import pytest

from hil.caches import UNKNOWN_BYTES, Eviction, last_level_bytes, parse_size

SIZES = {"index0": "32K", "index1": "32K", "index2": "1024K", "index3": "32768K"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("32768K\n", 2**25), ("8M", 2**23), ("1G", 2**30), ("512", 512), ("", None), ("K", None)],
)
def test_sizes_are_read_with_their_prefix(text: str, size: int | None) -> None:
    assert parse_size(text) == size


def test_the_last_level_is_the_largest_cache_of_the_first_processor(tmp_path: Path) -> None:
    for name, size in SIZES.items():
        folder = tmp_path / "sys/devices/system/cpu/cpu0/cache" / name
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert last_level_bytes(tmp_path) == 32 * 2**20


def test_a_silent_system_gives_no_size_and_a_documented_one_is_swept(tmp_path: Path) -> None:
    assert last_level_bytes(tmp_path) is None
    assert Eviction(None).bytes == 2 * UNKNOWN_BYTES


def test_a_sweep_reads_a_word_of_every_line_of_twice_the_cache() -> None:
    eviction = Eviction(2**16)
    assert eviction.bytes == 2**17
    assert eviction() == 2**17 // 64  # the words are ones
