"""The fast path on CUDA: the same pictures as the plain path, from the same weights, in a third of the time.

`unet` and `vae` are the models, top to bottom. `kernels` has what torch lacks, each beside its reference in plain torch, and
`triton_kernels` the same for the GPU. `graphs` captures a step once a shape and replays it; `engine` puts a job through.
"""
