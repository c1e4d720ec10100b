"""Documents -> pages: fetched, told apart, rendered where a hostile one can harm nothing but itself.

Imports within: addresses, image_files, pdf_layers, samples, texts < images, pdf_structure, pdf_text, web < decoder,
fetch, pdf < pages < renderer.
"""
