// The queue of a page of page.py: what is flagged, a review group at a time, and what a reviewer says of it. A decision
// is {verdict: "accepted" or "rejected", kind}: of a review group, or of one beat, which goes before that of its group.
// Decisions are kept in the browser, and downloaded as a table and as WFDB annotations. From page.js come ms,
// signal_line, first_beat, move, MOVE_S and USUAL; from page.py bokeh's sources (beats, kept, chosen), fs, n, strip_s.
const data = JSON.parse(document.getElementById("review-data").textContent)
const by_id = (id) => document.getElementById(id)
const KEPT = `ecgad-review-${data.key}`, KINDS = ["S", "V", "F", "Q"]
const MM_S = 25, MM_MV = 10, TEXT_MM = 7       // ECG paper: 25 mm/s, 10 mm/mV
const STRIP_MM = strip_s * MM_S, LEAD_MM = 36
const PRINTED_MM = 187.5, PRINTED_LEAD_MM = 25       // of 7.5 s, three to a page of A4

// Row numbers of the beats of each review group, in order of time
const members = new Map(data.groups.map((group) => [group.review_group, []]))
beats.data.review_group.forEach((number, k) => members.get(number)?.push(k))

// Those of them that can be looked at: of a long recording the page has the strips of some at full rate
const half = Math.floor(strip_s * fs / 2)
const seen = new Map([...members].map(([number, rows]) => [number, rows.filter((k) => is_kept(beats.data.sample[k]))]))
function is_kept(sample) {
  const from = Math.max(0, sample - half), to = Math.min(n, sample + half)
  let low = 0, high = start.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (stop[middle] < to) low = middle + 1; else high = middle
  }
  return low < start.length && start[low] <= from
}
const letter = (k) => states[beats.data.state[k]]

// --- decisions -------------------------------------------------------------------------------------------------------

let decisions = {}, past = []          // past: what each decision was before, for undo
let group = 0, at = 0                  // what is shown: a review group, one of its members

try {
  ({decisions, past} = JSON.parse(localStorage.getItem(KEPT)) ?? {decisions, past})
} catch { /* no storage, or not ours: nothing was decided */ }

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify({decisions, past}))
  } catch { /* a browser that keeps nothing: the download does */ }
}

const group_key = () => `group ${group}`
const beat_key = () => `beat ${beats.data.sample[seen.get(group)[at]]}`
const decided = (k) => decisions[`beat ${beats.data.sample[k]}`] ?? decisions[`group ${beats.data.review_group[k]}`]

// The letter of a beat after review
function reviewed_kind(k) {
  const decision = decided(k)
  if (!decision) return letter(k)
  return decision.verdict === "rejected" ? "N" : decision.kind ?? letter(k)
}

function decide(key, decision) {
  past.push([key, decisions[key] ?? null, group, at])
  decisions[key] = decision
  keep()
  show_all()
  say(`${key[0].toUpperCase()}${key.slice(1)}: ${in_words(decision)}.`)
}

function undo() {
  const last = past.pop()
  if (!last) return say("Nothing to undo.")
  const [key, before, ...place] = last
  // what is undone is what is shown
  if (members.has(place[0])) [group, at] = place
  if (before) decisions[key] = before; else delete decisions[key]
  keep()
  show_all()
  say(`Undone: ${key} is ${in_words(before)}.`)
}

function in_words(decision) {
  if (!decision) return "not reviewed"
  if (decision.verdict === "rejected") return "rejected, normal"
  return decision.kind ? `accepted as ${decision.kind}` : "accepted"
}

// --- drawing ---------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg"
function draw_into(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  if (text !== undefined) element.textContent = text
  parent.append(element)
  return element
}

function new_svg(width, height, label, more = {}) {
  const svg = document.createElementNS(SVG, "svg")
  const all = {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, ...more}
  for (const [key, value] of Object.entries(all)) svg.setAttribute(key, value)
  return svg
}

// "M...L..." of points; a sample that is missing interrupts the line
function path_of(xs, ys) {
  let path = "", pen = "M"
  xs.forEach((x, k) => {
    if (Number.isFinite(ys[k])) {
      path += `${pen}${x.toFixed(2)} ${ys[k].toFixed(2)}`
      pen = "L"
    } else pen = "M"
  })
  return path
}

function clock(sample) {
  const two = (v) => String(Math.floor(v)).padStart(2, "0")
  const tenths = Math.round(10 * sample / fs), s = tenths / 10
  const into = `${two(s / 3600)}:${two(s / 60 % 60)}:${two(s % 60)}.${tenths % 10}`
  if (!data.start) return into
  const day = new Date(Date.parse(data.start.slice(0, 23) + "Z") + 1000 * sample / fs)
  return `${into}, ${day.toISOString().slice(0, 19).replace("T", " ")}`
}

// ECG paper with the leads about a sample; `within`, lead_mm: width of the drawing, and height of a lead, in mm
function strip_of(sample, label, within = STRIP_MM, lead_mm = LEAD_MM) {
  const leads = data.leads.length, height = leads * lead_mm + TEXT_MM
  const svg = new_svg(within, height, label, {class: "paper", style: `width:${within}mm`})
  for (const [step, colour] of [[1, "#f6dcdc"], [5, "#e9b0b0"]]) {
    let lines = ""
    for (let x = 0; x <= within; x += step) lines += `M${x} 0V${height}`
    for (let y = 0; y <= height; y += step) lines += `M0 ${y}H${within}`
    draw_into(svg, "path", {d: lines, stroke: colour, "stroke-width": step > 1 ? 0.15 : 0.08})
  }

  const reach = Math.floor(within / MM_S / 2 * fs)
  const x_of = (time_ms) => within / 2 + (time_ms - ms(sample)) / 1000 * MM_S
  const a = Math.max(0, Math.ceil(sample - reach)), b = Math.min(n, Math.floor(sample + reach) + 1)
  for (let lead = 0; lead < leads; lead++) {
    // an outline of extremes on ECG paper would look like another heart
    const line = signal_line(a, b, 1, lead, false), known = line.y.filter(Number.isFinite).sort((i, j) => i - j)
    const quantile = (q) => known[Math.floor(q * (known.length - 1))] ?? 0

    // without a known gain, and where 10 mm/mV would not fit, the lead is drawn as high as there is room
    const middle = (quantile(0) + quantile(1)) / 2, span = quantile(1) - quantile(0) || 1
    const true_size = data.calibrated[lead] && span * MM_MV <= lead_mm
    const per_unit = true_size ? MM_MV : 0.8 * lead_mm / span
    const base = TEXT_MM + lead_mm * (lead + 0.5)
    draw_into(svg, "path", {d: path_of(line.x.map(x_of), line.y.map((v) => base - (v - middle) * per_unit)),
                            fill: "none", stroke: "#111", "stroke-width": 0.3})
    const gain = true_size ? "10 mm/mV" : data.calibrated[lead] ? `${per_unit.toPrecision(2)} mm/mV` : "gain not known"
    draw_into(svg, "text", {x: 1.5, y: TEXT_MM + lead_mm * (lead + 1) - 1.5, class: "note"},
              `${data.leads[lead]}, 25 mm/s, ${gain}`)
  }

  // the letter of each beat; the one in the middle has a mark
  for (let k = first_beat(a), end = first_beat(b); k < end; k++) {
    const x = x_of(ms(beats.data.sample[k])), flag = beats.data.state[k] !== USUAL && letter(k) !== "?"
    draw_into(svg, "text", {x, y: 4.5, "text-anchor": "middle", class: flag ? "letter flag" : "letter"},
              flag ? reviewed_kind(k) : letter(k) === "?" ? "·" : "N")
    if (beats.data.sample[k] !== sample) continue
    draw_into(svg, "path", {d: `M${x} 5.5V7.5`, stroke: "#111", "stroke-width": 0.5})
  }
  return svg
}

// The mean beat of a review group over the usual one of the recording
function mean_of(row) {
  const width = 100, height = 60, usual = data.usual, xs = data.offset_s
  const label = `Mean of ${row.beats} beats of review group ${row.review_group} over the usual beat. ` + deviation(row)
  const svg = new_svg(width, height, label, {class: "mean"})
  const all = [...row.mean, ...(usual ? [...usual.low, ...usual.high] : [])]
  const low = Math.min(...all), high = Math.max(...all), x0 = xs[0], x1 = xs[xs.length - 1]
  const x = (s) => 2 + 96 * (s - x0) / (x1 - x0), y = (v) => 52 - 48 * (v - low) / (high - low || 1)
  const points = (values) => path_of(xs.map(x), values.map(y))
  if (usual) {
    const back = points([...usual.low]).slice(1).split("L").reverse().join("L")
    draw_into(svg, "path", {d: `${points(usual.high)}L${back}Z`, fill: "#c9d8ea"})
    draw_into(svg, "path", {d: points(usual.mean), fill: "none", stroke: "#20558a", "stroke-width": 0.7})
  }
  draw_into(svg, "path", {d: points(row.mean), fill: "none", stroke: "#a83e00", "stroke-width": 1.1})
  draw_into(svg, "path", {d: `M${x(-0.3)} 57H${x(-0.1)}`, stroke: "#444", "stroke-width": 0.6})
  draw_into(svg, "text", {x: x(-0.08), y: 58.5, class: "small"}, "0.2 s")
  return svg
}

function deviation(row) {
  const where = row.deviates.length ? `; unlike nine in ten regular beats in the ${row.deviates.join(", ")}` : ""
  return `${row.why[0].toUpperCase()}${row.why.slice(1)}${where}.`
}

// --- what is shown ---------------------------------------------------------------------------------------------------

const count = (row) => `${row.beats.toLocaleString("en")} beat${row.beats > 1 ? "s" : ""}`
const say = (text) => { by_id("said").textContent = text }

// What is left of the flags, "" before the first decision
function totals() {
  if (!Object.keys(decisions).length) return ""
  const kinds = {}
  let open = 0
  for (const rows of members.values()) {
    for (const k of rows) {
      const kind = reviewed_kind(k)
      kinds[kind] = (kinds[kind] ?? 0) + 1
      if (!decided(k)) open += 1
    }
  }
  const left = KINDS.filter((kind) => kinds[kind]).map((kind) => `${kind} ${kinds[kind].toLocaleString("en")}`)
  return `After review: ${left.join(", ") || "nothing abnormal"}; ${(kinds.N ?? 0).toLocaleString("en")} rejected, ` +
    `${open.toLocaleString("en")} not reviewed.`
}

function show_list() {
  const settled = data.groups.filter((row) => decisions[`group ${row.review_group}`]).length
  const beats_alone = Object.keys(decisions).filter((key) => key.startsWith("beat")).length
  by_id("progress").textContent = `${settled} of ${data.groups.length} review groups decided` +
    (beats_alone ? `, ${beats_alone} single beat${beats_alone > 1 ? "s" : ""} besides` : "") + "."
  by_id("reviewed-totals").textContent = totals()
  for (const button of document.querySelectorAll("#queue button")) {
    const number = Number(button.dataset.group), decision = decisions[`group ${number}`]
    button.setAttribute("aria-current", number === group ? "true" : "false")
    button.dataset.verdict = decision?.verdict ?? ""
    button.querySelector(".verdict").textContent = in_words(decision)
  }
}

function show_member() {
  const rows = seen.get(group), all = members.get(group), k = rows[at], sample = beats.data.sample[k]
  const more = rows.length < all.length ? ` that the page shows of ${all.length}` : ""
  const before = k > 0 ? (sample - beats.data.sample[k - 1]) / fs : NaN
  by_id("member").textContent =
    `Beat ${at + 1} of ${rows.length}${more}, ${clock(sample)}. Kind ${reviewed_kind(k)}, excess ` +
    `${beats.data.excess[k].toFixed(1)}${Number.isFinite(before) ? `, RR before ${before.toFixed(2)} s` : ""}. ` +
    `This beat: ${in_words(decided(k))}.`
  by_id("strip").replaceChildren(strip_of(sample, `${strip_s} seconds of ECG around ${clock(sample)}`))

  const line = new_svg(1000, 16, `Where the ${all.length} beats lie in the recording`, {class: "members",
                                                                                        preserveAspectRatio: "none"})
  const place = (row) => 1000 * beats.data.sample[row] / n
  draw_into(line, "path", {d: all.map((row) => `M${place(row).toFixed(1)} 3V13`).join(""), stroke: "#a83e00"})
  draw_into(line, "path", {d: `M${place(k)} 0V16`, stroke: "#111", "stroke-width": 3})
  line.addEventListener("click", (event) => {
    const box = line.getBoundingClientRect(), there = (event.clientX - box.left) / box.width * n
    at = rows.reduce((best, row, i) => Math.abs(beats.data.sample[row] - there) <
                     Math.abs(beats.data.sample[rows[best]] - there) ? i : best, 0)
    show_member()
  })
  by_id("where").replaceChildren(line)
  chosen.data = {x: [ms(sample)], y: [0]}
}

function show_group() {
  const row = data.groups.find((row) => row.review_group === group)
  by_id("title").textContent = `Review group ${group}: ${row.kind}, ${count(row)}`
  by_id("why").textContent = `${deviation(row)} Median excess ${row.excess.toFixed(1)}. ` +
    `${in_words(decisions[group_key()]).replace(/^./, (c) => c.toUpperCase())}.`
  by_id("mean").replaceChildren(mean_of(row))
  show_member()
}

function show_all() {
  if (!data.groups.length) return
  show_list()
  show_group()
}

// The beat of a review group that is shown first is the one in the middle of them
function select(number) {
  group = number
  at = Math.floor(seen.get(group).length / 2)
  show_all()
}

// The review group before or after the one that is shown
function next_group(step) {
  const place = data.groups.findIndex((row) => row.review_group === group) + step
  if (data.groups[place]) select(data.groups[place].review_group)
}

function next_member(step) {
  at = Math.min(Math.max(0, at + step), seen.get(group).length - 1)
  show_member()
}

// --- what a reviewer does --------------------------------------------------------------------------------------------

const actions = {
  accept: () => decide(group_key(), {verdict: "accepted"}),
  reject: () => decide(group_key(), {verdict: "rejected"}),
  "accept beat": () => decide(beat_key(), {verdict: "accepted"}),
  "reject beat": () => decide(beat_key(), {verdict: "rejected"}),
  undo, "next group": () => next_group(1), "previous group": () => next_group(-1),
  "next beat": () => next_member(1), "previous beat": () => next_member(-1),
  look: () => {
    const time = ms(beats.data.sample[seen.get(group)[at]])
    move(time - 500 * MOVE_S, time + 500 * MOVE_S)
    by_id("timeline").scrollIntoView()
  }
}
for (const kind of KINDS) {
  actions[kind] = () => decide(group_key(), {verdict: "accepted", kind})
  actions[`beat ${kind}`] = () => decide(beat_key(), {verdict: "accepted", kind})
}
const KEYS = {
  a: "accept", r: "reject", A: "accept beat", R: "reject beat", u: "undo", j: "next group", k: "previous group",
  ArrowDown: "next group", ArrowUp: "previous group", ArrowRight: "next beat", ArrowLeft: "previous beat"
}
for (const kind of KINDS) {
  KEYS[kind.toLowerCase()] = kind
  KEYS[kind] = `beat ${kind}`
}

// Single keys act inside the queue alone, so that a voice or a screen reader's own keys do not decide anything
by_id("review").addEventListener("keydown", (event) => {
  if (!data.groups.length || event.altKey || event.metaKey || event.target.matches("select, input")) return
  const name = event.ctrlKey ? (event.key === "z" ? "undo" : undefined) : KEYS[event.key]
  if (!name) return
  event.preventDefault()
  actions[name]()
})
for (const button of document.querySelectorAll("button[data-do]")) {
  button.addEventListener("click", () => actions[button.dataset.do]())
}
for (const button of document.querySelectorAll("#queue button")) {
  button.addEventListener("click", () => select(Number(button.dataset.group)))
}
for (const chooser of document.querySelectorAll("select[data-rename]")) {
  chooser.addEventListener("change", () => {
    if (chooser.value) actions[chooser.dataset.rename + chooser.value]()
    chooser.value = ""
  })
}
for (const element of document.querySelectorAll("[data-from]")) {
  element.addEventListener("click", () => {
    const from = 1000 * element.dataset.from, to = 1000 * element.dataset.to, room = Math.max(2000, 0.2 * (to - from))
    move(from - room, to + room)
    const middle = Math.round((from + to) / 2000 * fs)
    by_id("episode").replaceChildren(strip_of(middle, `${strip_s} seconds of ECG around ${clock(middle)}`))
    const kept_here = is_kept(middle) ? "" : " Of so long a recording the page has this stretch in outline only: below."
    by_id("episode-said").textContent =
      `${element.dataset.kind}, ${clock(from / 1000 * fs)}: ${element.dataset.why}.${kept_here}`
    by_id("timeline").scrollIntoView()
  })
}

// --- what is taken away ----------------------------------------------------------------------------------------------

function offer(name, content, type) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([content], {type}))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

// What is flagged, a row a beat: as found, as reviewed
function reviewed_rows() {
  const rows = [["sample", "time_s", "review_group", "kind", "reviewed_kind", "verdict"]]
  beats.data.review_group.forEach((number, k) => {
    if (!number) return
    const sample = beats.data.sample[k]
    rows.push([sample, (sample / fs).toFixed(5), number, letter(k), reviewed_kind(k), decided(k)?.verdict ?? ""])
  })
  return rows
}

// Every scored beat with its letter after review and the verdict on it; rhythms and quality as they were found
function reviewed_notes() {
  const notes = []
  beats.data.state.forEach((state, k) => {
    if (state !== UNSCORED) notes.push([beats.data.sample[k], reviewed_kind(k), decided(k)?.verdict ?? "", 0])
  })
  return [...notes, ...data.notes].sort((a, b) => a[0] - b[0])
}

by_id("save-table")?.addEventListener("click", () => offer(
  `${data.name}.${data.reviewed}.csv`, csv_text(reviewed_rows()), "text/csv"))
by_id("save-annotations")?.addEventListener("click", () => offer(
  `${data.name}.${data.reviewed}`, annotation_bytes(reviewed_notes(), fs), "application/octet-stream"))

// --- on paper --------------------------------------------------------------------------------------------------------

// Two pages: what the template prints, then strips at true size: of the episode that most needs a look, if any, and of
// the first review groups
const PRINTED = 3
function fill_print() {
  const rows = data.groups.map((row) => {
    const line = document.createElement("tr")
    const verdict = in_words(decisions[`group ${row.review_group}`])
    for (const text of [row.review_group, row.kind, row.beats, deviation(row), verdict]) {
      const cell = document.createElement("td")
      cell.textContent = text
      line.append(cell)
    }
    const cell = document.createElement("td")
    cell.append(mean_of(row))
    line.append(cell)
    return line
  })
  by_id("print-groups").replaceChildren(...rows)
  const strips = data.groups.map((row) => {
    const rows = seen.get(row.review_group)
    return [beats.data.sample[rows[Math.floor(rows.length / 2)]], `Review group ${row.review_group}, ${row.kind}`]
  })
  if (data.urgent) strips.unshift([Math.round((data.urgent.start_s + data.urgent.end_s) / 2 * fs), data.urgent.kind])
  by_id("print-strips").replaceChildren(...strips.slice(0, PRINTED).map(([sample, label]) => {
    const shown = document.createElement("figure"), text = document.createElement("figcaption")
    text.textContent = `${label}: ${clock(sample)}`
    shown.append(text, strip_of(sample, text.textContent, PRINTED_MM, PRINTED_LEAD_MM))
    return shown
  }))
}
addEventListener("beforeprint", fill_print)
by_id("print")?.addEventListener("click", () => print())

if (data.groups.length) {
  select(data.groups[0].review_group)
  // so that its keys work at once
  by_id("review").focus({preventScroll: true})
}
document.documentElement.dataset.ready = "true"
