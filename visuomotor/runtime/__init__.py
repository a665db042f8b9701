"""The arm's side: running an exported policy with numpy, onnxruntime, OpenCV and safetensors alone.

Imports nothing else of the package, and never torch or mujoco: a robot's computer needs neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visuomotor.runtime.bundle import Bundle, BundleError, load_bundle

__all__ = ["Bundle", "BundleError", "load_bundle"]


def __getattr__(name: str) -> Any:
    """Loads what runs policies when it is asked for: the streamer's process needs numpy alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from visuomotor.runtime import bundle

    return getattr(bundle, name)
