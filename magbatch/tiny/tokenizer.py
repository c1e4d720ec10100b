"""The tiny model's `tekken.json`: a version 13 tokenizer file of about 700 tokens.

It holds Magistral's control tokens at Magistral's ids, all 256 bytes (so that every text can be written), a token per
digit, and a token for each word of `wording`.
"""

import base64
import json
from typing import Any

from magbatch.tiny.wording import pieces

# Ids of Magistral Small 1.2's tokenizer, in which the missing ids are unused too.
_CONTROL_TOKENS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[THINK]",
    35: "[/THINK]",
}
NUM_SPECIAL_TOKENS = 36

# Pattern by which tekken cuts text into words: a word includes one leading blank or mark, and each digit is alone. The
# only difference from tekken's own pattern: a word never includes a quotation mark. A grammar that has just passed the
# mark would otherwise force the word to be spelled out, since no token here consists of both.
_PATTERN = (
    r'[^\r\n\p{L}\p{N}"]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
    r'|[^\r\n\p{L}\p{N}"]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def tekken(*, patch_size: int, max_image_size: int, spatial_merge_size: int) -> dict[str, Any]:
    """Return the content of `tekken.json`.

    Args:
        patch_size: Side of an image patch in pixels.
        max_image_size: Longest side of an image in pixels; larger images are scaled down to it.
        spatial_merge_size: Number of patches that an image token spans in each direction.
    """
    words = [bytes([value]) for value in range(256)] + [piece.encode() for piece in pieces()]
    special = [
        {
            "rank": rank,
            "token_str": _CONTROL_TOKENS.get(rank, f"<SPECIAL_{rank}>"),
            "is_control": True,
        }
        for rank in range(NUM_SPECIAL_TOKENS)
    ]
    return {
        "config": {
            "pattern": _PATTERN,
            "num_vocab_tokens": len(words),
            "default_vocab_size": NUM_SPECIAL_TOKENS + len(words),
            "default_num_special_tokens": NUM_SPECIAL_TOKENS,
            "version": "v13",
        },
        "vocab": [
            {
                "rank": rank,
                "token_bytes": base64.b64encode(word).decode(),
                # A single byte above 127 is not text by itself.
                "token_str": word.decode() if rank >= 256 or rank < 128 else None,
            }
            for rank, word in enumerate(words)
        ],
        "special_tokens": special,
        "image": {
            "image_patch_size": patch_size,
            "max_image_size": max_image_size,
            "spatial_merge_size": spatial_merge_size,
        },
        "version": 1,
        "type": "Tekken",
    }


def tekken_json(*, patch_size: int, max_image_size: int, spatial_merge_size: int) -> str:
    """Return the text of `tekken.json`; arguments as in `tekken`."""
    content = tekken(
        patch_size=patch_size,
        max_image_size=max_image_size,
        spatial_merge_size=spatial_merge_size,
    )
    return json.dumps(content, ensure_ascii=False, indent=1)
