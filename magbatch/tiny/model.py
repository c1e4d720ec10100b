"""The tiny model in plain PyTorch, with the same arithmetic as vLLM's Pixtral on top of Mistral.

The tensors of `state_dict()` have the names of `consolidated.safetensors`. Training runs this code, and jobs run vLLM.
The greedy tokens of the two agree.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VISION_NORM_EPS = 1e-5


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis of `x`, (batch, heads, tokens, head_dim)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _frequencies(head_dim: int, theta: float) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


@dataclass
class KeyValues:
    """Cached keys and values of a layer.

    Attributes:
        keys: Keys, float32 (batch, kv heads, context, head_dim).
        values: Values, float32 of the same shape.
    """

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
        """Attend within `x`, or, if `at` is given, from one new token to the cached ones.

        Args:
            x: Hidden states, (batch, tokens, dim).
            cos: Cosines of the rotation, broadcastable to (batch, heads, tokens, head_dim / 2).
            sin: Sines of the rotation, of the same shape.
            causal: Whether a token sees only itself and earlier tokens.
            cache: Cache that is written at the tokens' positions, or None.
            at: Position of the new token of each row, int64 (batch,); None for a whole sequence.

        Returns:
            Hidden states, (batch, tokens, dim).
        """
        batch, tokens, _ = x.shape
        q = self.wq(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        # Always float32: the rotation for accuracy, the attention because its backward pass is several times faster in
        # float32 on CPUs.
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
    """Feed-forward layer with a gated SiLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states (…, dim) to the same shape."""
        out = self.w2(F.silu(self.w1(x)) * self.w3(x))
        assert isinstance(out, Tensor)
        return out


class Block(nn.Module):
    """A transformer layer: attention and feed-forward, each after a norm."""

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
        """Apply the layer to the residual stream; arguments as in `Attention.forward`."""
        x = x + self.attention(self.attention_norm(x), cos, sin, causal=causal, cache=cache, at=at)
        out = x + self.feed_forward(self.ffn_norm(x))
        assert isinstance(out, Tensor)
        return out


class VisionTransformer(nn.Module):
    """Layers of the vision encoder, in a module of their own since the checkpoint names it so."""

    def __init__(self, v: dict[str, Any]) -> None:
        super().__init__()
        dim, heads = v["hidden_size"], v["num_attention_heads"]
        self.layers = nn.ModuleList(
            Block(dim, heads, heads, dim // heads, v["intermediate_size"], _VISION_NORM_EPS)
            for _ in range(v["num_hidden_layers"])
        )


class VisionEncoder(nn.Module):
    """Vision encoder: patches of images to features, with two-dimensional rotary positions."""

    def __init__(self, v: dict[str, Any]) -> None:
        super().__init__()
        self.patch = v["patch_size"]
        self.patch_conv = nn.Conv2d(v["num_channels"], v["hidden_size"], self.patch, stride=self.patch, bias=False)
        self.ln_pre = nn.RMSNorm(v["hidden_size"], eps=_VISION_NORM_EPS)
        self.transformer = VisionTransformer(v)
        frequencies = _frequencies(v["hidden_size"] // v["num_attention_heads"], v["rope_theta"])
        side = v["image_size"] // self.patch
        places = torch.arange(side, dtype=torch.float32)
        # Even frequencies rotate with the row, odd ones with the column.
        rows = torch.outer(places, frequencies[::2])[:, None].expand(-1, side, -1)
        columns = torch.outer(places, frequencies[1::2])[None].expand(side, -1, -1)
        angles = torch.cat((rows, columns), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised images (images, 3, height, width) to features (images, rows, columns, hidden)."""
        images, channels, height, width = pixels.shape
        rows, columns = height // self.patch, width // self.patch
        # The patches do not overlap, so the convolution is a matrix product over them.
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
    """Merger of each square of neighbouring patches into one feature."""

    def __init__(self, dim: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.merging_layer = nn.Linear(dim * merge**2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map patches (images, rows, columns, dim) to image tokens (images, tokens, dim)."""
        x = x.unflatten(1, (-1, self.merge)).unflatten(3, (-1, self.merge))
        # Within a merged feature the channel is the slowest axis, as in `torch.nn.functional.unfold`.
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        out = self.merging_layer(x)
        assert isinstance(out, Tensor)
        return out


class VisionLanguageAdapter(nn.Module):
    """Adapter of two layers from the vision encoder's width to the language model's."""

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(vision_dim, dim, bias=False)
        self.w_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (…, vision_dim) to (…, dim)."""
        out = self.w_out(F.gelu(self.w_in(x)))
        assert isinstance(out, Tensor)
        return out


class TinyModel(nn.Module):
    """The whole model.

    Args:
        params: Content of `params.json`.
    """

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
        """Map normalised images (images, 3, height, width) to image tokens (images, image tokens, dim)."""
        features = self.pre_mm_projector_norm(self.vision_encoder(pixels))
        out = self.vision_language_adapter(self.patch_merger(features))
        assert isinstance(out, Tensor)
        return out

    def embed(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """Embed token ids.

        Args:
            tokens: Token ids, int64 (batch, tokens).
            images: Features of all image tokens of the batch in order, (image tokens, dim); None without images.

        Returns:
            Embedded tokens, (batch, tokens, dim).
        """
        x = self.tok_embeddings(tokens)
        if images is not None:
            # masked_scatter fills in row-major order: by row of the batch, then by token.
            x = x.masked_scatter((tokens == self.image_token)[..., None], images.to(x.dtype))
        assert isinstance(x, Tensor)
        return x

    def forward(self, x: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """Map embedded tokens (batch, tokens, dim) to final hidden states of the same shape.

        Rows may be padded on the right: attention is causal, so padding does not change the tokens before it.
        """
        tokens = x.shape[1]
        cos, sin = self.get_buffer("cos")[:tokens], self.get_buffer("sin")[:tokens]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, causal=True, cache=caches[index] if caches else None)
        out = self.norm(x)
        assert isinstance(out, Tensor)
        return out

    def step(self, tokens: Tensor, at: Tensor, caches: list[KeyValues]) -> Tensor:
        """Feed a token per row, and return the logits of the next one.

        Args:
            tokens: Token ids, int64 (batch,).
            at: Position of each token, int64 (batch,).
            caches: Caches of the layers; they are updated.

        Returns:
            Logits, (batch, vocabulary).
        """
        x = self.tok_embeddings(tokens)[:, None]
        cos, sin = self.get_buffer("cos")[at, None, None], self.get_buffer("sin")[at, None, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, causal=True, cache=caches[index], at=at)
        out = self.output(self.norm(x[:, 0]))
        assert isinstance(out, Tensor)
        return out

    def new_caches(self, batch: int, context: int) -> list[KeyValues]:
        """Return empty caches for `batch` rows of at most `context` tokens, one per layer."""
        shape = (batch, self.kv_heads, context, self.head_dim)
        return [KeyValues(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]
