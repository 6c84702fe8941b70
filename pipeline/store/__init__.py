"""Files of a run: complete or absent, checksummed, and carrying the key of what made them."""

from pipeline.store.cases import refuse_own_code, stored_case
from pipeline.store.columns import Column, observable_column, theta_column
from pipeline.store.complete import complete_or_absent, write_text
from pipeline.store.data import DataSet, is_data_file, read_data, write_data
from pipeline.store.deferred import DeferredErrors
from pipeline.store.hdf5 import as_text, create_dataset, hdf5_content_digest, open_hdf5, write_hdf5
from pipeline.store.keys import (
    content_key,
    file_sha256,
    input_digest,
    json_object,
    provenance,
    read_attribute,
    read_cost,
    read_key,
    read_record,
    stamp,
)
from pipeline.store.sums import check_sum, check_zip, read_sums, record_sums, recorded_in, sums_of
from pipeline.store.weights import read_safetensors, read_safetensors_header, write_safetensors
from simulators.reading.boundary import reading

__all__ = [
    "Column",
    "DataSet",
    "DeferredErrors",
    "as_text",
    "check_sum",
    "check_zip",
    "complete_or_absent",
    "content_key",
    "create_dataset",
    "file_sha256",
    "hdf5_content_digest",
    "input_digest",
    "is_data_file",
    "json_object",
    "observable_column",
    "open_hdf5",
    "provenance",
    "read_attribute",
    "read_cost",
    "read_data",
    "read_key",
    "read_record",
    "read_safetensors",
    "read_safetensors_header",
    "read_sums",
    "reading",
    "record_sums",
    "recorded_in",
    "refuse_own_code",
    "stamp",
    "stored_case",
    "sums_of",
    "theta_column",
    "write_data",
    "write_hdf5",
    "write_safetensors",
    "write_text",
]
