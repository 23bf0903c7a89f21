"""Stands in for SGLang's kernels where there are none: importable, and an error as soon as one is called."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_, **__):
        raise NotImplementedError(f"sgl_kernel.{name} is a stand-in and computes nothing")

    return kernel
