"""The tiny model in plain PyTorch, in the same arithmetic as vLLM's Pixtral with Mistral inside.

Tensors of `state_dict()` carry the names of `consolidated.safetensors`. Training runs this code;
serving runs vLLM; greedy tokens of the two agree.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VISION_NORM_EPS = 1e-5


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of the last axis; `x` is (batch, heads, tokens, head_dim)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _frequencies(head_dim: int, theta: float) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


@dataclass
class KeyValues:
    """Keys and values of one layer for generation: (batch, kv heads, context, head_dim)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.wq = nn.Linear(dim, heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        causal: bool,
        cache: KeyValues | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Attends within `x`, or, where `at` is given, from one new token to what is cached.

        Args:
            x: (batch, tokens, dim).
            cos: Cosines of the rotation, broadcastable to (batch, heads, tokens, head_dim / 2).
            sin: Sines of it.
            causal: Whether a token sees only the ones before it.
            cache: Written at the tokens' positions.
            at: (batch,) position of the one new token of each row.
        """
        batch, tokens, _ = x.shape
        q = self.wq(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        # In float32 whatever the products around it are in: rotation for accuracy, attention
        # because its backward pass is several times faster so on CPUs.
        q, k, v = _rotate(q.float(), cos, sin), _rotate(k.float(), cos, sin), v.float()
        mask = None
        if cache is not None and at is None:
            cache.keys[:, :, :tokens] = k
            cache.values[:, :, :tokens] = v
        elif cache is not None and at is not None:
            rows = torch.arange(batch)
            cache.keys[rows, :, at] = k[:, :, 0]
            cache.values[rows, :, at] = v[:, :, 0]
            k, v = cache.keys, cache.values
            mask = (torch.arange(k.shape[2]) <= at[:, None])[:, None, None, :]
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        out = self.wo(out.transpose(1, 2).reshape(batch, tokens, -1))
        assert isinstance(out, Tensor)
        return out


class FeedForward(nn.Module):
    """Gated SiLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        out = self.w2(F.silu(self.w1(x)) * self.w3(x))
        assert isinstance(out, Tensor)
        return out


class Block(nn.Module):
    """One layer, with the norms before its two parts."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, kv_heads, head_dim)
        self.feed_forward = FeedForward(dim, hidden)
        self.attention_norm = nn.RMSNorm(dim, eps=eps)
        self.ffn_norm = nn.RMSNorm(dim, eps=eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        causal: bool,
        cache: KeyValues | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """As `Attention.forward`, with the residual stream."""
        x = x + self.attention(self.attention_norm(x), cos, sin, causal=causal, cache=cache, at=at)
        out = x + self.feed_forward(self.ffn_norm(x))
        assert isinstance(out, Tensor)
        return out


class VisionTransformer(nn.Module):
    """The `layers` of the vision encoder, under the name the checkpoint has for them."""

    def __init__(self, v: dict[str, Any]) -> None:
        super().__init__()
        dim, heads = v["hidden_size"], v["num_attention_heads"]
        self.layers = nn.ModuleList(
            Block(dim, heads, heads, dim // heads, v["intermediate_size"], _VISION_NORM_EPS)
            for _ in range(v["num_hidden_layers"])
        )


class VisionEncoder(nn.Module):
    """Patches of same-sized images to features, with two-dimensional rotary positions."""

    def __init__(self, v: dict[str, Any]) -> None:
        super().__init__()
        self.patch = v["patch_size"]
        self.patch_conv = nn.Conv2d(v["num_channels"], v["hidden_size"], self.patch, stride=self.patch, bias=False)
        self.ln_pre = nn.RMSNorm(v["hidden_size"], eps=_VISION_NORM_EPS)
        self.transformer = VisionTransformer(v)
        frequencies = _frequencies(v["hidden_size"] // v["num_attention_heads"], v["rope_theta"])
        side = v["image_size"] // self.patch
        places = torch.arange(side, dtype=torch.float32)
        # Even frequencies turn with the row, odd ones with the column.
        rows = torch.outer(places, frequencies[::2])[:, None].expand(-1, side, -1)
        columns = torch.outer(places, frequencies[1::2])[None].expand(side, -1, -1)
        angles = torch.cat((rows, columns), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, height, width), normalised, to (images, rows, columns, hidden)."""
        images, channels, height, width = pixels.shape
        rows, columns = height // self.patch, width // self.patch
        # The convolution does not overlap itself, so it is one matrix product over the patches.
        patches = pixels.view(images, channels, rows, self.patch, columns, self.patch)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, -1)
        # The residual stream is float32, in training too.
        x = self.ln_pre(F.linear(patches, self.patch_conv.weight.flatten(1)).float())
        cos = self.get_buffer("cos")[:rows, :columns].reshape(rows * columns, -1)
        sin = self.get_buffer("sin")[:rows, :columns].reshape(rows * columns, -1)
        for layer in self.transformer.layers:
            x = layer(x, cos, sin, causal=False)
        out = x.view(images, rows, columns, -1)
        assert isinstance(out, Tensor)
        return out


class PatchMerger(nn.Module):
    """Joins each square of neighbouring patches into one feature."""

    def __init__(self, dim: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.merging_layer = nn.Linear(dim * merge**2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(images, rows, columns, dim) to (images, tokens, dim)."""
        x = x.unflatten(1, (-1, self.merge)).unflatten(3, (-1, self.merge))
        # The channel comes first inside a merged feature, as `unfold` orders it.
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        out = self.merging_layer(x)
        assert isinstance(out, Tensor)
        return out


class VisionLanguageAdapter(nn.Module):
    """Two layers from the vision encoder's width to the language model's."""

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(vision_dim, dim, bias=False)
        self.w_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same leading axes in and out."""
        out = self.w_out(F.gelu(self.w_in(x)))
        assert isinstance(out, Tensor)
        return out


class TinyModel(nn.Module):
    """The whole model, of the shape that a `params.json` gives."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        v = params["vision_encoder"]
        dim, eps = params["dim"], params["norm_eps"]
        self.head_dim, self.kv_heads = params["head_dim"], params["n_kv_heads"]
        self.image_token = v["image_token_id"]
        self.tok_embeddings = nn.Embedding(params["vocab_size"], dim)
        self.layers = nn.ModuleList(
            Block(
                dim,
                params["n_heads"],
                params["n_kv_heads"],
                params["head_dim"],
                params["hidden_dim"],
                eps,
            )
            for _ in range(params["n_layers"])
        )
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.output = nn.Linear(dim, params["vocab_size"], bias=False)
        self.vision_encoder = VisionEncoder(v)
        self.pre_mm_projector_norm = nn.RMSNorm(v["hidden_size"], eps=_VISION_NORM_EPS)
        self.patch_merger = PatchMerger(v["hidden_size"], v["spatial_merge_size"])
        self.vision_language_adapter = VisionLanguageAdapter(v["hidden_size"], dim)
        positions = torch.arange(params["max_position_embeddings"], dtype=torch.float32)
        angles = torch.outer(positions, _frequencies(params["head_dim"], params["rope_theta"]))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def see(self, pixels: Tensor) -> Tensor:
        """(images, 3, height, width), normalised, to (images, image tokens, dim)."""
        features = self.pre_mm_projector_norm(self.vision_encoder(pixels))
        out = self.vision_language_adapter(self.patch_merger(features))
        assert isinstance(out, Tensor)
        return out

    def embed(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """Embeds (batch, tokens); `images` is (image tokens of the whole batch, dim), in order."""
        x = self.tok_embeddings(tokens)
        if images is not None:
            # masked_scatter fills in row-major order: the batch's order, then the tokens'.
            x = x.masked_scatter((tokens == self.image_token)[..., None], images.to(x.dtype))
        assert isinstance(x, Tensor)
        return x

    def forward(self, x: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """Embedded (batch, tokens, dim) to final hidden states of the same shape.

        Rows may be padded on the right: attention is causal, so padding changes nothing before it.
        """
        tokens = x.shape[1]
        cos, sin = self.get_buffer("cos")[:tokens], self.get_buffer("sin")[:tokens]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, causal=True, cache=caches[index] if caches else None)
        out = self.norm(x)
        assert isinstance(out, Tensor)
        return out

    def step(self, tokens: Tensor, at: Tensor, caches: list[KeyValues]) -> Tensor:
        """Feeds one token a row at its position; gives the logits (batch, vocabulary)."""
        x = self.tok_embeddings(tokens)[:, None]
        cos, sin = self.get_buffer("cos")[at, None, None], self.get_buffer("sin")[at, None, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, causal=True, cache=caches[index], at=at)
        out = self.output(self.norm(x[:, 0]))
        assert isinstance(out, Tensor)
        return out

    def new_caches(self, batch: int, context: int) -> list[KeyValues]:
        """Empty caches for `batch` rows of at most `context` tokens."""
        shape = (batch, self.kv_heads, context, self.head_dim)
        return [KeyValues(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]
