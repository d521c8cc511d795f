"""Files of electrocardiographs, written here by their standards: the readers never write."""

import base64
import struct

import numpy as np


def ishne(path, raw, nv=(2500, 1000), fs_hz=250, codes=(6, 15), text=b"by hand"):
    """Badilini 1998; raw (n, leads) int16 in steps of nv."""
    n, leads = raw.shape
    pad = [-9] * (12 - leads)
    head = bytearray(512)                     # the header counts from byte 10 on

    def put(at, form, *values):
        struct.pack_into(form, head, at - 10, *values)

    put(10, "<5i", len(text), n, 522, 522 + len(text), 1)  # and version
    put(138, "<3h", 5, 3, 2024)               # recorded on
    put(150, "<3h", 23, 59, 50)
    put(156, "<h", leads)
    put(158, "<12h", *codes, *pad)
    put(206, "<12h", *nv, *pad)
    put(272, "<h", fs_hz)
    path.write_bytes(b"ISHNE1.0" + b"\0\0" + bytes(head) + text + raw.astype("<i2").tobytes())


def dicom(path, raw, uv=(2.5, 1.0), fs_hz=250, codes=("2", "7"), sop=None,
          syntax=None, unit="uV"):
    """By pydicom: a General ECG; raw (n, leads) int16 in steps of uv."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def item(**values):
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    channels = []
    for step, code in zip(uv, codes):
        channels.append(item(
            ChannelSourceSequence=[item(CodeValue=f"5.6.3-9-{code}", CodeMeaning="a lead",
                                        CodingSchemeDesignator="SCPECG")],
            ChannelSensitivity=step, ChannelSensitivityCorrectionFactor=1, ChannelBaseline=0,
            ChannelSensitivityUnitsSequence=[item(CodeValue=unit, CodingSchemeDesignator="UCUM",
                                                  CodeMeaning="unit")],
            WaveformBitsStored=16))
    group = item(MultiplexGroupTimeOffset=0, WaveformOriginality="ORIGINAL",
                 NumberOfWaveformChannels=raw.shape[1], NumberOfWaveformSamples=len(raw),
                 SamplingFrequency=fs_hz, MultiplexGroupLabel="RHYTHM",
                 ChannelDefinitionSequence=channels, WaveformBitsAllocated=16,
                 WaveformSampleInterpretation="SS", WaveformData=raw.astype("<i2").tobytes())
    file = item(SOPClassUID=sop or "1.2.840.10008.5.1.4.1.1.9.1.2", SOPInstanceUID=generate_uid(),
                Modality="ECG", AcquisitionDateTime="20240305235950", WaveformSequence=[group])
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def aecg(path, raw, uv=(2.5, 1.0), fs_hz=250, codes=("II", "V5"), above="", encoding="utf-8"):
    """HL7 V3 aECG, 2004: digits times scale."""
    leads = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{code}" '
        f'codeSystem="2.16.840.1.113883.6.24"/><value xsi:type="SLIST_PQ">'
        f'<origin value="0" unit="uV"/><scale value="{step}" unit="uV"/>'
        f'<digits>{" ".join(map(str, column))}</digits></value></sequence></component>'
        for code, step, column in zip(codes, uv, raw.T.tolist()))
    path.write_bytes(
        f'<?xml version="1.0" encoding="{encoding}"?>{above}<AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id root="1"/><effectiveTime>'
        '<low value="20240305235950"/></effectiveTime><component><series><code code="RHYTHM"/>'
        '<effectiveTime><low value="20240305235950"/></effectiveTime>'
        '<component><sequenceSet><component><sequence><code code="TIME_ABSOLUTE"/>'
        '<value xsi:type="GLIST_TS"><head value="20240305235950"/>'
        f'<increment value="{1 / fs_hz}" unit="s"/></value></sequence></component>{leads}'
        "</sequenceSet></component></series></component></AnnotatedECG>".encode(encoding))


def muse(path, raw, uv=(2.5, 1.0), fs_hz=250, codes=("II", "V5"), units="MICROVOLTS"):
    """GE MUSE: a median beat, which is no recording, then the rhythm."""
    def waveform(kind, samples):
        leads = "".join(
            f"<LeadData><LeadByteCountTotal>{2 * len(column)}</LeadByteCountTotal>"
            f"<LeadSampleCountTotal>{len(column)}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>{step}</LeadAmplitudeUnitsPerBit>"
            f"<LeadAmplitudeUnits>{units}</LeadAmplitudeUnits><LeadSampleSize>2</LeadSampleSize>"
            f"<LeadID>{code}</LeadID><WaveFormData>"
            f"{base64.b64encode(column.astype('<i2').tobytes()).decode()}</WaveFormData></LeadData>"
            for code, step, column in zip(codes, uv, samples.T))
        return (f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>{fs_hz}</SampleBase>"
                f"<SampleExponent>0</SampleExponent>{leads}</Waveform>")

    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?><RestingECG><MuseInfo><MuseVersion>9</'
        "MuseVersion></MuseInfo><TestDemographics><AcquisitionTime>23:59:50</AcquisitionTime>"
        f"<AcquisitionDate>03-05-2024</AcquisitionDate></TestDemographics>"
        f"{waveform('Median', raw[:300])}{waveform('Rhythm', raw)}</RestingECG>")


def crc(data):
    """CRC-CCITT, as SCP-ECG wants it."""
    value = 0xFFFF
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
    return value


def scp(path, raw, nv=1000, fs_hz=250, codes=(2, 7), differences=0):
    """EN 1064: sections 0, 1, 3, 6, without Huffman codes; raw (n, leads) int16 in steps of nv."""
    n = len(raw)
    stored = raw.astype(np.int64)
    if differences:
        stored = np.diff(stored, prepend=np.zeros((1, raw.shape[1]), int), axis=0)
    day = struct.pack("<BHHBB", 25, 4, 2024, 3, 5)      # acquired on
    time = struct.pack("<BHBBB", 26, 3, 23, 59, 50)
    leads = b"".join(struct.pack("<IIB", 1, n, code) for code in codes)
    sizes = struct.pack(f"<{len(codes)}H", *[2 * n] * len(codes))
    bodies = {1: day + time + b"\xff\0\0",
              3: bytes([len(codes), 4 | len(codes) << 3]) + leads,
              6: struct.pack("<HHBB", nv, round(1e6 / fs_hz), differences, 0) + sizes
              + stored.T.astype("<i2").tobytes()}

    at = 7 + 16 + 12 * 10                                # counted from 1
    pointers = struct.pack("<HII", 0, 16 + 120, 7)
    sections = b""
    for number in range(1, 12):
        body = bodies.get(number, b"")
        body += b"\0" * (len(body) % 2)
        size = 16 + len(body) if body else 0
        pointers += struct.pack("<HII", number, size, at if size else 0)
        if size:
            head = struct.pack("<HIBB6x", number, size, 20, 20)
            sections += struct.pack("<H", crc(head + body)) + head + body
            at += size
    head = struct.pack("<HIBB6s", 0, 16 + 120, 20, 20, b"SCPECG")
    sections = struct.pack("<H", crc(head + pointers)) + head + pointers + sections
    record = struct.pack("<I", 6 + len(sections)) + sections
    path.write_bytes(struct.pack("<H", crc(record)) + record)


def mfer(path, raw, nv=(2500, 1000), fs_hz=250, codes=(2, 7), blocks=1, claim=None):
    """MFER part 1: little endian, each lead with its own sensitivity and name."""
    def tag(code, value):
        size = len(value)
        length = bytes([size]) if size < 128 else b"\x84" + struct.pack(">I", size)
        return bytes([code]) + length + value

    n, leads = raw.shape
    parts = [tag(0x40, b"MFR ECG "), tag(1, b"\1"), tag(0x0B, struct.pack("<BbH", 1, -6, round(
        1e6 / fs_hz)) if fs_hz != 250 else struct.pack("<BbB", 1, -3, 4)),
        tag(5, bytes([leads])), tag(4, struct.pack("<I", claim or n // blocks)),
        tag(6, struct.pack("<I", blocks)), tag(0x0A, b"\0"),
        tag(0x85, struct.pack("<HBBBBB", 2024, 3, 5, 23, 59, 50))]
    for k, (code, step) in enumerate(zip(codes, nv)):
        inner = tag(9, bytes([code])) + tag(0x0C, struct.pack("<BbH", 0, -9, step))
        parts.append(b"\x3f" + bytes([k, len(inner)]) + inner)
    blocks_of = raw.reshape(blocks, n // blocks, leads).transpose(0, 2, 1)
    parts += [tag(0x1E, blocks_of.astype("<i2").tobytes()), b"\x80\0"]
    path.write_bytes(b"".join(parts))


def kardia(path, raw, nv=500, fs_hz=300, names=("leadI", "leadII")):
    """The Kardia API's answer: whole numbers in steps of nv."""
    import json
    samples = {name: column.tolist() for name, column in zip(names, raw.T)}
    path.write_text(json.dumps({
        "id": "x", "patientID": "p", "duration": 1000 * len(raw) / fs_hz,
        "recordedAt": "2024-03-05T23:59:50Z", "algorithmDetermination": "normal",
        "data": {"raw": {"frequency": fs_hz, "mainsFrequency": 50, "amplitudeResolution": nv,
                         "numLeads": len(names), "samples": samples}}}))
