"""The way of one row, one file per step.

- `read`: shard -> input rows; `cursor` reads one file forward.
- `render`: input row -> chat messages, decoded images, pages of its document.
- `prompt`: messages, images and pages -> token ids; `chat`, `page_chat` and `splitting` do the encoding, and `combine`
  asks about the answers to page groups.
- `prepare`: the three above, composed for the shards of one read task, on CPUs.
- `block`: a prepared shard as one Arrow record, and back in the replica.
- `generate`: token ids -> generated tokens, asked of the engine; `request` makes one request.
- `parse`: generated tokens -> reasoning, answer, status.
- `answer`: a row asked, parsed and checked.
- `write`: finished rows -> one Parquet object, whose upload is the commit.

A row that fails at any step becomes a dead letter and spares its neighbours. The room imports neither Ray nor the plan
nor the ledger: callables tell it which rows are done and where to report.

Imports within: block, context, cursor, meter, parse, reading, render, repetition, splitting, write
< chat, read, request < generate, page_chat < combine < prompt < answer, prepare.
"""
