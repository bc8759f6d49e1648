"""Where pictures, sounds, texts and films come from: sources, transforms, the one pipeline, the tokenizer, the latent cache.

    source          what a source is: random access to rows
    folder          folders of images or sounds; tfds_source reads TFDS without TensorFlow, texts text files, stacks films
    shapes          the embedded data set; moving_shapes of films, vessels of volumes, sentences of text
    transform       from a row to the arrays of one example
    pipeline        batches: rows shuffled, transformed, batched, a function of seed and step
    tokenizer       words to token numbers, trained on captions
    latent_cache    the first stage's moments of a whole source, computed once
    masks           random holes; degradation makes small pictures, label_maps and layout read maps and boxes
"""
