"""The operators once more, in Triton: for GPUs without a compiler at hand, of either make.

One file per operator, named like its rooms elsewhere: the kernels, then the function that launches
them, which is the raw operator of that name in ``csrc/library.cpp`` with the same arguments.
``dropout.py`` is the smallest and a good one to begin with; ``product.py`` is the matrix product
that ``linear_relu.py`` and ``corr2d.py`` are made of. ``pool2d.py`` has its kernels in files beside
it.

With ``TRITON_INTERPRET=1`` in the environment, kernels run on the CPU, element by element in NumPy.
That is slow, and right: all tests of the operators pass.
"""
