"""Continue a prompt with a sharded model, token by token and without a cache."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Tensor,  # (batch, seq) integers, all of one length
    num_tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
    multiple: int = 64,
) -> Tensor:  # (batch, seq + num_tokens)
    """Draw `num_tokens` tokens after each prompt; temperature 0 takes the likeliest.

    Every rank of a sharded model has to call it with the same arguments, and gets the same tokens.
    The whole sequence is run through the model for each token: meant for a few short samples.

    Args:
        multiple: the model sees one length, a multiple of this: a compiled model then compiles
            once, and sequence parallelism can cut it. What is added at the end changes nothing,
            attention being causal.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, prompt_length = prompts.shape
    length = prompt_length + num_tokens
    tokens = prompts.new_zeros(batch, length + -length % multiple)
    tokens[:, :prompt_length] = prompts
    for position in range(prompt_length, length):
        logits = model(tokens)
        if isinstance(logits, DTensor):
            logits = logits.full_tensor()
        logits = logits[:, position - 1].float().cpu()
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        tokens[:, position] = chosen.to(tokens.device)
    return tokens[:, :length]
