"""A page to play with a model: draw, change pictures, look at a run. `ldm-app --workdir runs/shapes`.

    settings   what a person can set for a model, and the flags of sample.py that it means
    pictures   settings -> pictures that say how they were drawn, films
    uploads    bytes of unknown files, and strokes of a brush -> arrays
    run        curves and pictures of a working directory
    page       what a browser shows; with `canvas`, which is painted on, and `server` it needs the extra `app`
    server     one address, one page a visitor, one drawing at a time
"""
