"""One file of a device, read by ecgdatakit in a process of its own: python -m ... PATH OUT.

A file from a stranger may make a library take all memory or all time: this process may have
MAX_BYTES, and is ended by who started it. Writes OUT, (samples, leads) float64, in mV where known,
NaN where missing; prints JSON: what the file says, or {"error": why not}.
"""

import json
import sys
import warnings

import numpy as np

MAX_BYTES = 4 * 2**30
MAX_LEADS = 64
# whose factors to mV were held against their standards (tests/test_reader_devices.py)
CHECKED = {".dcm": ("dicom_waveform",), ".xml": ("hl7_aecg", "ge_muse_xml"), ".scp": ("scp_ecg",),
           ".mwf": ("mfer",), ".mfer": ("mfer",), ".json": ("alivecor_kardia",)}


def main(path, out):
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    except (ImportError, ValueError):
        pass  # not on this system

    try:
        print(json.dumps(read(path, out)))
    except Exception as error:  # a library of many formats raises anything
        said = " ".join(str(error).split()).replace(path, "it")
        said = f"{type(error).__name__}: {said[:300]}"

        # the library says of a lack of memory that the file is damaged
        while error:
            if isinstance(error, MemoryError):
                said = f"it takes more than {MAX_BYTES:,} bytes of memory to read"
            error = error.__cause__
        print(json.dumps({"error": said}))


def read(path, out):
    """{"fs_hz", "leads", "calibrated", "start", "n_samples"} of a file; its samples go to `out`."""
    from ecgdatakit import FileParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = FileParser.parse(path, units="mV")

    suffix = path[path.rindex("."):].lower()
    if record.source_format not in CHECKED[suffix]:
        raise ValueError(f"{record.source_format} in a file {suffix}, whose units are not known "
                         "for certain")

    # the leads of the first one's rate; one may begin later than others
    leads = [lead for lead in record.leads if lead.sampling_rate == record.leads[0].sampling_rate]
    if not 1 <= len(leads) <= MAX_LEADS:
        raise ValueError(f"{len(leads)} leads with samples; expected 1 to {MAX_LEADS}")
    begins = [int(lead.annotations.get("start_sample", 1)) - 1 for lead in leads]
    first = min(begins)
    lengths = [begin - first + len(lead.samples) for begin, lead in zip(begins, leads)]

    table = np.lib.format.open_memmap(out, "w+", np.float64, (max(lengths), len(leads)))
    for k, lead in enumerate(leads):
        table[:, k] = np.nan
        table[begins[k] - first:lengths[k], k] = lead.samples
    table.flush()

    date = record.recording.date
    return {"fs_hz": _rate(record, leads[0].sampling_rate), "leads": [lead.label for lead in leads],
            "calibrated": [not lead.is_raw and lead.units == "mV" for lead in leads],
            "start": date.replace(tzinfo=None).isoformat() if date else None}


def _rate(record, rounded):
    """Hz: the library rounds to a whole number, but keeps what the file says where it is not."""
    said = record.raw_metadata
    exact = [said.get("rhythm_time", {}).get("sampling_rate_exact"),
             *said.get("sampling_rates", [])[:1],
             *[group["sampling_frequency"] for group in said.get("multiplex_groups", [])],
             1e6 / said["rhythm_sample_interval_us"] if said.get("rhythm_sample_interval_us")
             else None]
    for hz in exact:
        # a group of another rate holds the mean beat
        if hz and abs(hz - rounded) <= 0.5 and abs(hz - rounded) > 1e-3 * rounded / 10:
            return float(hz)
    return float(rounded)


if __name__ == "__main__":
    main(*sys.argv[1:])
