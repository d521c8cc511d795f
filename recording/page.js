// What moves the plots over time of a page of page.py, once they are there. Its arguments are bokeh's models and plain
// numbers: the plots are drawn anew from the stored arrays for the stretch they show, in at most COLUMNS columns.
const COLUMNS = 2000, MISSING = -32768, MOVE_S = 30
const USUAL = 0, UNSCORED = states.length - 1   // states of a beat; those between are flagged
const {start, stop} = kept.data
const full = [full0.data.v, full1.data.v]
const ms = (sample) => 1000 * sample / fs

// Lowest and highest of each `group` values from first to last, as points of a line
function extremes(line, lead, low, high, first, last, group, time) {
  const value = (stored) => stored === MISSING ? NaN : offset[lead] + scale[lead] * stored
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

// The line of a lead (0: the scored one) from sample a to b, `width` of them a column: at full rate where that is
// kept, else from the envelope of the scored lead, or not at all
function signal_line(a, b, width, lead = 0, outline = true) {
  const line = {x: [], y: []}
  const v = full[lead], {low, high} = envelope.data
  const between = (from, to) => outline && lead === 0 && extremes(
    line, lead, low, high, Math.ceil(from / step), Math.min(low.length, Math.ceil(to / step)),
    Math.max(1, Math.round(width / step)), (k) => ms((k + 0.5) * step))
  let at = a, place = 0
  for (let k = 0; k < start.length; k++) {
    const from = Math.max(a, start[k]), to = Math.min(b, stop[k]), shift = place - start[k]
    place += stop[k] - start[k]
    if (from >= to) continue
    between(at, from)
    extremes(line, lead, v, v, from + shift, to + shift, width, (i) => ms(i - shift))
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

// Points of the beats a to b that are wanted; of too many the lowest and highest of neighbours
function score_dots(a, b, wanted) {
  const {sample, excess, state} = beats.data, found = [], dots = {x: [], y: []}
  for (let k = first_beat(a), end = first_beat(b); k < end; k++) if (wanted(state[k])) found.push(k)
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

// A range about the values that are known, with a share of room
function fit(range, values, room) {
  let low = Infinity, high = -Infinity
  for (const v of values) {
    if (v < low) low = v
    if (v > high) high = v
  }
  if (low > high) return
  const more = room * (high - low) || 0.5
  range.setv({start: low - more, end: high + more})
}

function draw() {
  const a = Math.max(0, Math.floor(x_range.start / 1000 * fs)), b = Math.min(n, Math.ceil(x_range.end / 1000 * fs) + 1)
  signal.data = signal_line(a, b, Math.max(1, Math.ceil((b - a) / COLUMNS)))
  fit(signal_y, signal.data.y, 0.05)
  normal.data = score_dots(a, b, (state) => state === USUAL)
  flagged.data = score_dots(a, b, (state) => state !== USUAL && state !== UNSCORED)
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

// Buttons in the page: data-zoom (factor), data-shift (share of what is shown)
for (const button of document.querySelectorAll("button[data-zoom], button[data-shift]")) {
  button.addEventListener("click", () => {
    const {zoom, shift} = button.dataset, width = x_range.end - x_range.start
    const middle = (x_range.start + x_range.end) / 2 + Number(shift ?? 0) * width, wide = width * Number(zoom ?? 1)
    move(middle - wide / 2, middle + wide / 2)
  })
}
for (const edge of ["start", "end"]) x_range.properties[edge].change.connect(draw_soon)
draw()
