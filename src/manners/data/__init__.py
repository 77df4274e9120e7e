"""Raw data → rows → tensors. Only readers know a dataset's field names, only ``encode`` applies chat templates."""
