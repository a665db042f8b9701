"""The arm's side: running an exported policy with numpy, onnxruntime and safetensors alone.

Imports nothing else of the package, and never torch or mujoco: a robot's computer needs neither.
"""

from visuomotor.runtime.bundle import Bundle, BundleError, load_bundle

__all__ = ["Bundle", "BundleError", "load_bundle"]
