"""GPUs from what nvidia-smi prints; the texts have its format, and are of no machine."""

import pytest

from costmodels.errors import BackendError
from hil.device import detect
from hil.gpus import QUERY, Gpu, device_zero, installed_gpus, parse_gpus

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


ONE = parse_gpus(TWO)[:1]


@pytest.mark.parametrize(
    ("found", "environment", "name"),
    [
        (ONE, {}, "A100"),
        (ONE, {"CUDA_VISIBLE_DEVICES": "GPU-1b2c"}, "A100"),
        (ONE * 2, {"CUDA_VISIBLE_DEVICES": "1,0"}, "A100"),  # either is as good
        (parse_gpus(TWO), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "A100"),
        (
            parse_gpus(TWO),
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"},
            "V100",
        ),
    ],
)
def test_device_0_is_the_one_that_cuda_calls_so(
    found: tuple[Gpu, ...], environment: dict[str, str], name: str
) -> None:
    assert name in device_zero(found, environment).name


@pytest.mark.parametrize(
    ("found", "environment", "reason"),
    [
        ((), {}, "lists 0 GPUs; ort measures the CPU"),
        (ONE, {"CUDA_VISIBLE_DEVICES": ""}, "hides all"),
        (ONE, {"CUDA_VISIBLE_DEVICES": "-1"}, "hides all"),
        (ONE, {"CUDA_VISIBLE_DEVICES": "1"}, "lists no GPU 1"),
        (ONE, {"CUDA_VISIBLE_DEVICES": "MIG-1b2c"}, "it is open which GPU"),
        (parse_gpus(TWO), {}, "A100.* and Tesla V100, PCIe.*: set CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        (parse_gpus(TWO), {"CUDA_VISIBLE_DEVICES": "1"}, "it is open which GPU"),
        (
            parse_gpus(TWO),
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1b2c"},
            "it is open which GPU",
        ),
    ],
)
def test_no_gpu_is_guessed(
    found: tuple[Gpu, ...], environment: dict[str, str], reason: str
) -> None:
    with pytest.raises(BackendError, match=reason):
        device_zero(found, environment)


def test_a_machine_is_another_device_with_its_gpu() -> None:
    gpu = parse_gpus(TWO)[0]
    plain, with_gpu = detect(), detect(accelerator=str(gpu))
    assert with_gpu.identity == (*plain.identity, str(gpu))
