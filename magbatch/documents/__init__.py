"""Documents -> pages: fetch files that rows name, detect their type, and render them in processes that may crash.

The files are untrusted. They are decoded in child processes that have limits of time and memory, and none of the
environment's secrets. `magbatch.sandbox.confine` says what such a process may still reach.

Imports within: addresses, image_files, pdf_layers, samples, texts < images, pdf_structure, pdf_text, web < decoder,
fetch, pdf < pages < renderer.
"""
