"""A vLLM of a few lines, for the plugin's mechanism where vLLM is not."""

# vLLM's contract in small: a kernel is launched as kernel[grid](...), and register_kernels puts something
# in its place, by name, that is called without the grid.
FILES = {
    "vllm/__init__.py": "",
    "vllm/plugins.py": """
from importlib.metadata import entry_points

def load_general_plugins():
    for plugin in entry_points(group="vllm.general_plugins"):
        if plugin.name == "xkv":
            plugin.load()()
""",
    "vllm/triton_utils/__init__.py": "",
    "vllm/triton_utils/jit.py": """
class Kernel:
    def __init__(self, fn):
        self.fn, self.calls = fn, []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.calls.append((grid, args, kwargs))

    def warmup(self, *args, grid, **kwargs):
        return "theirs"
""",
    "vllm/triton_utils/dispatcher.py": """
import importlib

class KernelOverride:
    def __init__(self, kernel, impl):
        self.kernel, self.impl = kernel, impl

    def __getitem__(self, grid):
        return self.impl

def register_kernels(overrides):
    for name, impl in overrides.items():
        path, attr = name.rsplit(".", 1)
        if path.rsplit(".", 1)[-1][0].isupper():
            path, cls = path.rsplit(".", 1)
            host = getattr(importlib.import_module(path), cls)
        else:
            host = importlib.import_module(path)
        setattr(host, attr, KernelOverride(getattr(host, attr), impl))
""",
    "vllm/tables.py": """
from vllm.triton_utils.jit import Kernel

@Kernel
def _gather(src, dst, n):
    dst[:n] = src[:n]

class Slots:
    @Kernel
    def kernel(src):
        # a comment is no part of it
        src += 1
""",
    "vllm/paging.py": """
from vllm.triton_utils.jit import Kernel

@Kernel
def _copy(src, dst):
    dst[:] = src
""",
}
