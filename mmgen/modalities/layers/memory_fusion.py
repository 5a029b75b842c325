"""Memory fusion of aligned sequences of several modalities: attention over two steps and a gated memory."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmgen.errors import UserError, check_at_least
from mmgen.modalities.vector import multilayer_perceptron


class MemoryFusion(nn.Module):
    """Gated memory over aligned sequences of several modalities.

    At step t, with ``c = [h_{t-1}; h_t]`` of all modalities: ``a = softmax(A(c)) * c``, the candidate ``u = tanh(U(a))``, the
    gates ``r, s = sigmoid(R([a; m_{t-1}])), sigmoid(S([a; m_{t-1}]))``, and the memory ``m_t = r * m_{t-1} + s * u``.

    Args:
        sizes: width of each modality's features.
        memory: size of the memory.
        hidden: width of the four networks.

    Raises:
        UserError: a size is below 1; in use, the sequences are not aligned.

    Source: Zadeh et al. 2018, Memory Fusion Network, arXiv 1802.00927. They attend to the cells of LSTMs; here, the attention
        reads features of any sequence network.

    >>> fusion = MemoryFusion([3, 2], memory=4)
    >>> fusion([torch.zeros(2, 5, 3), torch.zeros(2, 5, 2)], torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, sizes: Sequence[int], memory: int, hidden: int = 64) -> None:
        super().__init__()
        self.memory, window = check_at_least("memory", memory, 1), 2 * sum(sizes)
        self.attention = multilayer_perceptron([window, hidden, window])
        self.candidate = multilayer_perceptron([window, hidden, memory])
        self.gates = nn.ModuleList(multilayer_perceptron([window + memory, hidden, memory]) for _ in range(2))

    def forward(self, steps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Compute the memory (b, t, memory) from features (b, t, d_m) of each modality.

        Positions where ``mask`` (b, t) is False, as not all modalities are present, leave the memory unchanged, so the last
        position always has the final memory.
        """
        if len({x.shape[:2] for x in steps}) != 1:
            fix = "align them to the same words, or fuse by concatenation"
            raise UserError("sequences", got=[tuple(x.shape[:2]) for x in steps], expected="one length for all", fix=fix)
        x = torch.cat(list(steps), -1)  # (b, t, d)
        memory, before = x.new_zeros(len(x), self.memory), torch.zeros_like(x[:, 0])
        memories = []
        for now, real in zip(x.unbind(1), mask[..., None].unbind(1)):  # (b, d), (b, 1)
            window = torch.cat([before, now], -1)  # (b, 2 d)
            attended = self.attention(window).softmax(-1) * window
            keep, write = (gate(torch.cat([attended, memory], -1)).sigmoid() for gate in self.gates)  # (b, memory) each
            updated = keep * memory + write * self.candidate(attended).tanh()
            memory, before = torch.where(real, updated, memory), torch.where(real, now, before)
            memories.append(memory)
        return torch.stack(memories, 1)  # (b, t, memory)
