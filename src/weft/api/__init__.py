"""
What users write: Istio's kinds, the Gateway API's and `weft.yaml`, read strictly, with the place of every mistake.

`weft.api.parse.parse` takes texts and returns typed objects and all problems at once; it does no I/O.
`weft.api.files.read_documents` is the one place here that opens files. Depends on `weft.model` only.

Nothing is imported here: names and kinds are asked for by commands that need no models, which take long to load.
"""
