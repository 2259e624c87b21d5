"""Continue a prompt, token by token."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Tensor,  # (batch, seq) integers, all of one length
    num_tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> Tensor:  # (batch, seq + num_tokens)
    """Draw `num_tokens` tokens after each prompt; temperature 0 takes the likeliest.

    Every rank of a sharded model has to call it with the same arguments, and gets the same tokens.
    The whole sequence is run through the model for each token: meant for a few short samples.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = prompts
    for _ in range(num_tokens):
        logits = model(tokens)[:, -1].float().cpu()
        if temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            chosen = torch.multinomial(weights, 1, generator=generator)
        tokens = torch.cat((tokens, chosen.to(tokens)), dim=1)
    return tokens
