"""GPUs are counted as a local Ray counts them, without it."""

import pytest

from magbatch.fleet.devices import gpus_here, visible_count


def test_rays_count_is_the_same() -> None:
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    there, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    assert gpus_here() in (there if visible is None else min(there, len(visible)), None)


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "0", "0,1", "GPU-1,GPU-2,GPU-3", "-1"])
def test_what_the_environment_hides_is_read_as_by_ray(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    assert seen is not None
    assert visible_count(visible) == len(seen)
