"""Raw data → rows → tensors. Only ``formats`` knows a dataset's field names, only ``encode`` applies chat templates."""
