"use strict";
// Draws what the JSON in #data says (report/page.py): charts, tables, and the timeline of whatever point is picked.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const LAYOUT = {
    font: { family: "system-ui, sans-serif", size: 12 },
    margin: { l: 62, r: 18, t: 30, b: 48 },
    hovermode: "closest",
  };
  // With more bars than these, those narrower than a pixel are drawn together until one zooms in.
  const MOST_BARS = 3000;
  const PIXELS = 1200;

  const byId = (id) => document.getElementById(id);
  const element = (tag, parent, text = "") => {
    const made = parent.appendChild(document.createElement(tag));
    made.textContent = text;
    return made;
  };
  const list = (parent, rows) => {
    parent.replaceChildren();
    for (const [name, value] of rows) {
      element("dt", parent, name);
      element("dd", parent, value);
    }
  };

  // Charts and tables

  // The grid of all sections decides how wide a chart may be, so they are all there before the first is drawn.
  const addSection = (chart) => {
    element("section", byId("charts")).id = chart.name;
  };

  const drawChart = (chart) => {
    const section = byId(chart.name);
    element("h2", section, chart.title);
    if (chart.note) element("p", section, chart.note).className = "note";
    const choice = chart.panels.length > 1 ? element("select", section) : null;
    const place = element("div", section);
    place.className = "chart";
    const show = (panel) => Plotly.react(place, panel.traces, { ...LAYOUT, height: 400, ...panel.layout }, CONFIG);
    if (choice) {
      choice.ariaLabel = chart.title;
      for (const panel of chart.panels) element("option", choice, panel.title);
      choice.onchange = () => show(chart.panels[choice.selectedIndex]);
    } else if (chart.panels[0].title) {
      element("p", section, chart.panels[0].title).className = "note";
      section.append(place);
    }
    if (chart.panels.some((panel) => panel.traces.some((trace) => trace.customdata))) section.classList.add("pickable");
    return show(chart.panels[0]).then(() => place.on("plotly_click", (event) => {
      const key = event.points.map((point) => point.customdata).find((value) => value in data.timelines);
      if (key !== undefined) pick(key);
    }));
  };

  const drawTable = (table) => {
    const section = element("section", byId("tables"));
    element("h2", section, table.title);
    const body = element("table", section);
    const head = element("tr", element("thead", body));
    for (const name of [...table.columns, ""]) element("th", head, name);
    const rows = element("tbody", body);
    for (const [cells, key] of table.rows) {
      const row = element("tr", rows);
      for (const cell of cells) element("td", row, cell);
      const last = element("td", row);
      if (key in data.timelines) element("button", last, "timeline").onclick = () => pick(key);
    }
  };

  // Timelines

  const unpacked = async (timeline) => {
    const packed = Uint8Array.from(atob(timeline.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const values = new Float32Array(await new Response(stream).arrayBuffer());
    let at = 0;
    const take = (count) => values.subarray(at, (at += count));
    const lanes = timeline.lanes.map(({ name, count }) => {
      const [gaps, lengths, steps, kinds] = [take(count), take(count), take(count), take(count)];
      const spans = [];
      let time = 0;
      let visit = 0;
      for (let i = 0; i < count; i += 1) {
        const start = time + gaps[i];
        time = start + lengths[i];
        visit += steps[i];
        spans.push({ start, end: time, visit, kind: kinds[i] });
      }
      return { name, spans };
    });
    const [steps, held] = [take(timeline.steps), take(timeline.steps)];
    let time = 0;
    const memory = Array.from(steps, (step, i) => [(time += step), held[i]]);
    return { lanes, memory };
  };

  const placeOf = (outline, visit) => {
    let first = 0;
    for (const stage of outline) {
      const count = stage.rounds * stage.blocks.length;
      if (visit < first + count) {
        const inside = visit - first;
        return { stage, round: Math.floor(inside / stage.blocks.length), block: stage.blocks[inside % stage.blocks.length] };
      }
      first += count;
    }
    return null;
  };

  const seconds = (value) => `${Number(value.toPrecision(5))} s`;

  const textOf = (span, what, outline) => {
    if (span.count > 1) return `${span.count} × ${what} (zoom in)<br>${seconds(span.start)} to ${seconds(span.end)}`;
    const { stage, round, block } = placeOf(outline, span.visit);
    const where = `${block}, ${stage.name}, round ${round + 1} of ${stage.rounds}`;
    return `${what}: ${where}<br>${seconds(span.start)} to ${seconds(span.end)} (${seconds(span.end - span.start)})`;
  };

  const merged = (spans, pixel) => {
    const result = [];
    for (const span of spans) {
      const last = result[result.length - 1];
      if (last && span.kind === last.kind && span.start - last.end < pixel && span.end - last.start < 3 * pixel) {
        last.end = span.end;
        last.count += 1;
      } else {
        result.push({ ...span, count: 1 });
      }
    }
    return result;
  };

  const barsOf = (timeline, lanes, outline, from, to) => {
    const bars = new Map();
    const isMany = lanes.reduce((sum, lane) => sum + lane.spans.length, 0) > MOST_BARS;
    const groups = [...new Set(outline.map((stage) => stage.group))];
    lanes.forEach((lane) => {
      const visible = lane.spans.filter((span) => span.end >= from && span.start <= to);
      const series = new Map();
      for (const span of visible) {
        const name = span.kind ? "waiting" : placeOf(outline, span.visit).stage.group;
        if (!series.has(name)) series.set(name, []);
        series.get(name).push(span);
      }
      for (const [name, spans] of series) {
        if (!bars.has(name)) bars.set(name, { base: [], x: [], y: [], width: [], hovertext: [] });
        const bar = bars.get(name);
        const work = lane.name === "executor" ? "execute" : "load";
        for (const span of isMany ? merged(spans, (to - from) / PIXELS) : spans) {
          bar.base.push(span.start);
          bar.x.push(span.end - span.start);
          bar.y.push(lane.name);
          bar.width.push(span.kind ? 0.24 : 0.8);
          bar.hovertext.push(textOf(span, span.kind ? `wait, ${timeline.causes[span.kind - 1]}` : work, outline));
        }
      }
    });
    return [...groups, "waiting"].filter((name) => bars.has(name)).map((name) => ({
      type: "bar",
      orientation: "h",
      name: name.replaceAll("_", " "),
      ...bars.get(name),
      hoverinfo: "text",
      marker: {
        color: name === "waiting" ? data.colors.wait : data.colors.groups[groups.indexOf(name) % data.colors.groups.length],
        line: { width: bars.get(name).x.length < 250 ? 0.8 : 0, color: "white" },
      },
    }));
  };

  const thinned = (curve, from, to) => {
    const visible = curve.filter(([time], i) => time <= to && (i + 1 === curve.length || curve[i + 1][0] >= from));
    if (visible.length <= MOST_BARS) return visible;
    const result = [];
    const size = Math.ceil(visible.length / (MOST_BARS / 3));
    for (let i = 0; i < visible.length; i += size) {
      const part = visible.slice(i, i + size);
      const least = part.reduce((a, b) => (b[1] < a[1] ? b : a));
      const most = part.reduce((a, b) => (b[1] > a[1] ? b : a));
      result.push(...[...new Set([part[0], least, most])].sort((a, b) => a[0] - b[0]));
    }
    return result;
  };

  const memoryOf = (timeline, memory, from, to) => {
    const end = timeline.makespan;
    const line = (name, points, look, more = {}) => ({
      type: "scatter",
      mode: "lines",
      name,
      x: [...points.map((point) => point[0]), Math.max(end, points[points.length - 1][0])],
      y: [...points.map((point) => point[1]), points[points.length - 1][1]],
      yaxis: "y2",
      line: { shape: "hv", width: 1.4, ...look },
      hovertemplate: `${name}: %{y:.4g} ${timeline.unit} at %{x:.5g} s<extra></extra>`,
      ...more,
    });
    return [
      line("memory", thinned(memory, from, to), { color: data.colors.memory, width: 1 }, { fill: "tozeroy" }),
      line("baseline", [[0, timeline.baseline]], { color: "#7F7F7F", dash: "dot" }),
      line("limit", timeline.limits, { color: data.colors.limit, dash: "dash" }),
    ];
  };

  const drawTimeline = async (timeline) => {
    const { lanes, memory } = await unpacked(timeline);
    const outline = data.outlines[timeline.workload];
    const place = byId("timeline-chart");
    const whole = [0, Math.max(timeline.makespan * 1.005, 1e-9)];
    const height = 70 + 42 * lanes.length + 190;
    const split = 190 / (height - 70);
    const show = (from, to) => Plotly.react(
      place,
      [...barsOf(timeline, lanes, outline, from, to), ...memoryOf(timeline, memory, from, to)],
      {
        ...LAYOUT,
        height: height + 20,
        barmode: "overlay",
        dragmode: "zoom",
        uirevision: "zoomed by hand",
        legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
        margin: { ...LAYOUT.margin, l: 78, t: 34 },
        xaxis: { title: { text: "time (s)" }, range: [from, to], anchor: "y2" },
        yaxis: {
          domain: [split + 0.05, 1],
          type: "category",
          categoryorder: "array",
          categoryarray: lanes.map((lane) => lane.name),
          fixedrange: true,
        },
        yaxis2: {
          domain: [0, split],
          title: { text: `memory (${timeline.unit})` },
          rangemode: "tozero",
          fixedrange: true,
        },
      },
      CONFIG,
    );
    Plotly.purge(place);
    await show(...whole);
    place.on("plotly_relayout", (change) => {
      if (change["xaxis.autorange"]) show(...whole);
      else if (change["xaxis.range[0]"] !== undefined) show(change["xaxis.range[0]"], change["xaxis.range[1]"]);
    });
  };

  const drawIdle = (timeline) => {
    const layout = {
      ...LAYOUT,
      barmode: "stack",
      height: 110 + 40 * timeline.lanes.length,
      xaxis: { title: { text: "time (s)" } },
      yaxis: { automargin: true },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", traceorder: "normal" },
      margin: { ...LAYOUT.margin, l: 78, t: 40 },
    };
    return Plotly.react(byId("idle-chart"), timeline.idle, layout, { ...CONFIG, displayModeBar: false });
  };

  const pick = async (key, { scroll = true } = {}) => {
    const timeline = data.timelines[key];
    const section = byId("timeline");
    delete section.dataset.key;
    section.hidden = false;
    byId("timeline-title").textContent = timeline.title;
    list(byId("timeline-figures"), timeline.figures);
    try {
      await drawTimeline(timeline);
    } catch (problem) {
      byId("timeline-chart").textContent = `This browser cannot unpack the timeline (${problem.message}).`;
    }
    await drawIdle(timeline);
    section.dataset.key = key;
    if (scroll) section.scrollIntoView({ behavior: "smooth", block: "nearest" });
  };

  const start = async () => {
    for (const note of data.notes) element("p", byId("notes"), note);
    list(byId("facts"), data.facts);
    data.charts.forEach(addSection);
    await Promise.all(data.charts.map(drawChart));
    data.tables.forEach(drawTable);
    if (data.first !== null) await pick(data.first, { scroll: false });
    document.body.dataset.ready = "yes";
  };
  start();
})();
