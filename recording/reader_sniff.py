"""Which files of a folder are recordings, by their content where the suffix does not say.

A file that is named is opened and fails with its reason; one that a folder happens to hold must
not make the folder fail, nor be passed over silently.
"""

from importlib.util import find_spec

INSTALL = "pip install -r requirements/formats.txt"
HEAD_BYTES = 2**16
ECG_XML = (b"AnnotatedECG", b"RestingECG")       # the root that an XML file's head names
DICOM_ECG = b"1.2.840.10008.5.1.4.1.1.9."     # the storage classes of waveforms
KARDIA = (b'"recordedAt"', b'"algorithmDetermination"', b'"amplitudeResolution"', b'"patientID"')
OF_LIBRARY = (".dcm", ".xml", ".scp", ".mwf", ".mfer", ".json")   # requirements/formats.txt
DOUBTFUL = (".txt", ".mat", ".ecg", *OF_LIBRARY)  # in a folder their content says what they are
PACKED = (".zip", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".tar")
FOREIGN = (".rec", ".gdf", ".vhdr", ".acq", ".adicht", ".smr", ".h5", ".hdf5", ".parquet", ".xls",
           ".xlsx", ".fit", ".dicom", ".mecg", ".ful", ".rf", ".m4a", ".pkl", ".pickle")


def why_not(path):
    """"" for a recording, a reason for a file that may be one but is not read, None for others.

    path: a file that a folder holds.
    """
    try:
        return _why_not(path, path.suffix.lower())
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _why_not(path, suffix):
    if suffix == ".txt":
        from recording.reader_table import looks_like_table  # here: pandas takes long to load
        return "" if looks_like_table(path) else "no table of numbers"
    if suffix == ".mat":
        return "" if not path.with_suffix(".hea").is_file() else None
    if suffix == ".dat":
        # without a header nobody knows what is in it
        alone = next(path.parent.glob("*.hea"), None) is None
        return "a signal file without its header (.hea)" if alone else None
    if suffix in PACKED:
        return "packed: unpack it"
    if suffix in FOREIGN:
        return "not read here: export it as EDF or CSV"
    if suffix not in DOUBTFUL:
        return None

    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    plain = head.replace(b"\0", b"")  # XML may be in UTF-16
    if suffix == ".ecg":
        return "" if head.startswith(b"ISHNE1.0") else "no ISHNE file"
    if suffix == ".json" and sum(key in head for key in KARDIA) < 2:
        return None  # settings, results
    if suffix == ".xml" and not any(root in plain for root in ECG_XML):
        return "no ECG in this XML"
    if suffix == ".dcm" and DICOM_ECG not in head:
        return "no ECG in this DICOM file"
    return "" if find_spec("ecgdatakit") else f"needs {INSTALL}"


def sentence(skipped):
    """One line of what was passed over: {path: reason}."""
    reasons = {}
    for path, reason in skipped.items():
        reasons.setdefault(reason, []).append(getattr(path, "name", str(path)))

    parts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[:3])}{more} ({reason})")
    files = "file" if len(skipped) == 1 else "files"
    return f"passed over {len(skipped)} {files}: {'; '.join(parts)}"
