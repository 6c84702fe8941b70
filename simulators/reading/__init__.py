"""Files that others wrote, read within a bound: whatever a library raises becomes one line that names the file.

`bounds` has the bytes and the text, `words` numbers in text, `tables` text tables, `fits` headers and bytes of FITS,
`hdf5` HDF5, `yaml` settings.
"""
