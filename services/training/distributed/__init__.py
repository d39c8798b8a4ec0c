"""One fit in several processes, on one machine or many: each takes its share of every batch, and all end in one result.

    stride train fashion --workers 2                              launch.py starts the processes and watches over them
    torchrun --nproc-per-node 2 -m pipelines.cli train fashion    torchrun does
    RAY_ADDRESS=… stride train fashion --workers 2                ray_train.py has a Ray cluster do it

front.py      which of these it is
start.py      a worker: the first one is `services.training.train`, the others are `follow.py`
workers.py    what the loop asks of the group: gradients, metrics and state, by torch.distributed
bucket.py     the gradients of all parameters as one tensor, added up in one go
layers.py     batch normalisation over the whole batch, and dropout drawn for it
signs.py      what the workers tell each other outside of the fit: a problem, and that it is over
"""
