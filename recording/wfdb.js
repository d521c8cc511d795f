// A WFDB annotation file (MIT format, annot(5) of PhysioNet's WFDB guide) of rows [sample, symbol, aux, subtype] in
// order of time: words of 16 bits, low byte first, of 6 bits code and 10 bits distance from the row before.
const CODES = {N: 1, V: 5, F: 6, S: 9, Q: 13, "~": 14, '"': 22, "+": 28, "[": 32, "]": 33}
const SKIP = 59, SUBTYPE = 61, AUX = 63, FAR = 1023

function annotation_bytes(rows, rate) {
  const bytes = []
  const word = (value) => bytes.push(value & 255, value >> 8 & 255)
  const add = (symbol, distance, aux, subtype) => {
    // farther than 10 bits tell: a distance of 32 bits by itself, high half first
    const far = distance > FAR
    if (far) {
      word(SKIP << 10)
      word(distance >>> 16)
      word(distance & 65535)
    }
    word(CODES[symbol] << 10 | (far ? 0 : distance))
    if (subtype) word(SUBTYPE << 10 | subtype & FAR)
    if (aux) {
      word(AUX << 10 | aux.length)
      for (let k = 0; k < aux.length; k += 2) word(aux.charCodeAt(k) | (aux.charCodeAt(k + 1) || 0) << 8)
    }
  }

  add('"', 0, `## time resolution: ${rate}`, 0)
  let last = 0
  for (const [sample, symbol, aux, subtype] of rows) {
    add(symbol, sample - last, aux, subtype)
    last = sample
  }
  word(0)
  return new Uint8Array(bytes)
}

// The file is a table for any program: names of the recording are not in it
function csv_text(rows) {
  return rows.map((row) => row.join(",") + "\n").join("")
}
