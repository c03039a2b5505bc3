"""
(Snapshot, Proxy) -> xDS resources, and what can be said about them. Pure: no I/O, no clock, no globals.

    resources = translator.Translator().translate(snapshot, proxy)    # or translate(snapshot, proxy), without memory
    check.check(resources)                                  # errors: something is missing that weft itself promised
    capabilities.refusals(item, proxy.data_plane)           # errors: fields that this data plane cannot honour
    resource.affected(before, after)                        # names added, changed, removed, by type URL

Read `translator.py` first: it is the table of contents.

Nothing is imported here: `weft why` reads what was translated, and needs none of what translates.
"""
