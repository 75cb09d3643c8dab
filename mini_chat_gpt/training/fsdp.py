"""Shard a model over the processes of a run with FSDP2."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from mini_chat_gpt.model import GPT


def shard(model: GPT, device: torch.device) -> GPT:
    """Keep only this process's rows of every parameter, on `device`. All processes must call this together.

    Each block gathers its weights when it computes and frees them afterwards. All later computations with the model,
    `next_logits` included, are collective: every process must run them. If the processes hold different weights, those of
    rank 0 are used, as with DDP. The whole model need not fit on `device`.

    Weights stay float32 under autocast, as in an unsharded model. FSDP2's own MixedPrecisionPolicy would also round the
    weights of the norms and the residual stream.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # On CPUs every process warns at its first step with Muon that all-to-all uses another algorithm than on GPUs.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    # Without resharding, the embedding would stay gathered after an evaluation and miss later updates of its rows.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "next_logits")
    for module in (*model.layers, model):
        # FSDP2 reuses the tensors of its first gather. Training cannot use them if generation created them in inference mode.
        module.unshard()
        module.reshard()
    return model
