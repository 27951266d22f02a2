"""GPUs from what nvidia-smi prints; the texts have its format, and are of no machine."""

from hil.device import detect
from hil.gpus import QUERY, Gpu, installed_gpus, parse_gpus

TWO = "NVIDIA A100-SXM4-80GB, 8.0, 81920, 535.104.05\nTesla V100, PCIe, 7.0, [N/A], 535.104.05\n"


def test_each_line_is_a_gpu_and_a_name_may_hold_commas() -> None:
    first, second = parse_gpus(TWO)
    assert first == Gpu("NVIDIA A100-SXM4-80GB", "8.0", 81920 * 2**20, "535.104.05")
    assert (second.name, second.memory_bytes) == ("Tesla V100, PCIe", 0)


def test_other_lines_are_no_gpu() -> None:
    assert parse_gpus("No devices were found\n") == parse_gpus("") == ()


def test_they_are_asked_of_nvidia_smi() -> None:
    asked: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...]) -> str:
        asked.append(command)
        return TWO

    assert len(installed_gpus(run)) == 2
    assert asked == [QUERY]


def test_a_machine_is_another_device_with_its_gpu() -> None:
    gpu = parse_gpus(TWO)[0]
    plain, with_gpu = detect(), detect(accelerator=str(gpu))
    assert with_gpu.identity == (*plain.identity, str(gpu))
