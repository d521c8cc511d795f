// What moves a page of page.py, once its plots are there. Its arguments are bokeh's models and plain numbers:
// the plots over time are drawn anew from the stored arrays for the stretch they show, in at most COLUMNS columns;
// a row of the table draws its strip and moves the plots over time there.
const COLUMNS = 2000, MISSING = -32768, MOVE_S = 30
const half = Math.floor(strip_s * fs / 2)
const {start, stop} = kept.data
const value = (stored) => stored === MISSING ? NaN : offset + scale * stored
const ms = (sample) => 1000 * sample / fs

// Lowest and highest of each `group` values from first to last, as points of a line
function extremes(line, low, high, first, last, group, time) {
  for (let k = first; k < last; k += group) {
    const end = Math.min(k + group, last)
    let a = Infinity, b = -Infinity
    for (let i = k; i < end; i++) {
      if (low[i] === MISSING) continue
      if (low[i] < a) a = low[i]
      if (high[i] > b) b = high[i]
    }
    const known = a <= b, x = time((k + end - 1) / 2)
    line.x.push(x)
    line.y.push(known ? value(a) : NaN)
    if (known && a < b) { line.x.push(x); line.y.push(value(b)) }
  }
}

// The line of samples a to b, `width` of them a column: at full rate where that is kept, else from the envelope
function signal_line(a, b, width) {
  const line = {x: [], y: []}
  const v = full.data.v, {low, high} = envelope.data
  const between = (from, to) => extremes(
    line, low, high, Math.ceil(from / step), Math.min(low.length, Math.ceil(to / step)),
    Math.max(1, Math.round(width / step)), (k) => ms((k + 0.5) * step))
  let at = a, place = 0
  for (let k = 0; k < start.length; k++) {
    const from = Math.max(a, start[k]), to = Math.min(b, stop[k]), shift = place - start[k]
    place += stop[k] - start[k]
    if (from >= to) continue
    between(at, from)
    extremes(line, v, v, from + shift, to + shift, width, (i) => ms(i - shift))
    at = to
  }
  if (at < b) between(at, b)
  return line
}

// First beat at or after a sample
function first_beat(sample) {
  const all = beats.data.sample
  let low = 0, high = all.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (all[middle] < sample) low = middle + 1; else high = middle
  }
  return low
}

// Points of the beats a to b in one state; of too many the lowest and highest of neighbours
function score_dots(a, b, wanted) {
  const {sample, excess, state} = beats.data, found = [], dots = {x: [], y: []}
  for (let k = first_beat(a), end = first_beat(b); k < end; k++) if (state[k] === wanted) found.push(k)
  const group = found.length > 2 * COLUMNS ? Math.ceil(found.length / COLUMNS) : 1
  for (let k = 0; k < found.length; k += group) {
    const near = found.slice(k, k + group).sort((i, j) => excess[i] - excess[j])
    for (const i of group > 1 ? [near[0], near[near.length - 1]] : near) {
      dots.x.push(ms(sample[i]))
      dots.y.push(excess[i])
    }
  }
  return dots
}

// A range about the values that are known, with a share of room; the highest of them
function fit(range, values, room) {
  let low = Infinity, high = -Infinity
  for (const v of values) {
    if (v < low) low = v
    if (v > high) high = v
  }
  if (low > high) return range.end
  const more = room * (high - low) || 0.5
  range.setv({start: low - more, end: high + more})
  return high
}

function draw() {
  const a = Math.max(0, Math.floor(x_range.start / 1000 * fs)), b = Math.min(n, Math.ceil(x_range.end / 1000 * fs) + 1)
  signal.data = signal_line(a, b, Math.max(1, Math.ceil((b - a) / COLUMNS)))
  fit(signal_y, signal.data.y, 0.05)
  normal.data = score_dots(a, b, 0)
  flagged.data = score_dots(a, b, 1)
}

let waiting = false
function draw_soon() {
  if (waiting) return
  waiting = true
  requestAnimationFrame(() => { waiting = false; draw() })
}

function move(from, to) {
  const whole = x_range.bounds[1], width = Math.min(whole, Math.max(x_range.min_interval, to - from))
  const left = Math.min(Math.max(0, from), whole - width)
  x_range.setv({start: left, end: left + width})
}

// The strip of a row of the table
function show(row) {
  const at = rows.data.sample[row], a = Math.max(0, at - half), b = Math.min(n, at + half + 1)
  const line = signal_line(a, b, 1), marks = [0, 1, 2].map(() => ({x: [], y: [], top: [], text: []}))
  const seconds = (x) => (x - ms(at)) / 1000
  strip.data = {x: line.x.map(seconds), y: line.y}
  const top = fit(strip_y, line.y, 0.12)
  for (let k = first_beat(a), end = first_beat(b); k < end; k++) {
    const mark = marks[beats.data.state[k]], at_peak = signal_line(beats.data.sample[k], beats.data.sample[k] + 1, 1)
    mark.x.push(seconds(ms(beats.data.sample[k])))
    mark.y.push(Number.isFinite(at_peak.y[0]) ? at_peak.y[0] : top)
    mark.top.push(top)
    const score = Math.round(10 * beats.data.excess[k]) / 10 + 0  // no -0.0
    mark.text.push(Number.isFinite(score) ? score.toFixed(1) : "")
  }
  for (const [k, source] of [strip_normal, strip_flagged, strip_unscored].entries()) source.data = marks[k]
  chosen.data = {x: [ms(at)]}
  document.getElementById("shown").textContent =
    `Beat ${rows.data.rank[row]} of ${rows.data.rank.length} listed, ${rows.data.time[row]} into the recording, ` +
    `excess ${rows.data.excess[row].toFixed(1)}.`
}

// Buttons in the page: data-zoom (factor), data-shift (share of what is shown), data-row (steps in the table)
for (const button of document.querySelectorAll("button[data-zoom], button[data-shift], button[data-row]")) {
  button.addEventListener("click", () => {
    const {zoom, shift, row} = button.dataset, width = x_range.end - x_range.start
    if (row) {
      const next = (rows.selected.indices[0] ?? 0) + Number(row)
      if (next >= 0 && next < rows.data.rank.length) rows.selected.indices = [next]
      return
    }
    const middle = (x_range.start + x_range.end) / 2 + Number(shift ?? 0) * width, wide = width * Number(zoom ?? 1)
    move(middle - wide / 2, middle + wide / 2)
  })
}
for (const edge of ["start", "end"]) x_range.properties[edge].change.connect(draw_soon)
rows.selected.properties.indices.change.connect(() => {
  const row = rows.selected.indices[0]
  if (row === undefined) return
  show(row)
  move(ms(rows.data.sample[row]) - 500 * MOVE_S, ms(rows.data.sample[row]) + 500 * MOVE_S)
})
draw()
if (rows.data.rank.length) show(0)
document.documentElement.dataset.ready = "true"
