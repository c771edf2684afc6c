// The page's script: unpack the data, then map, panel, search, breadcrumb. All text from the corpus enters the page by
// textContent.

const byId = (id) => document.getElementById(id);

/** A number with two decimals as the commands write it (digits.py): a tie, an odd number of eighths, goes to the even digit. */
function fixed(value) {
  const low = Math.floor(value * 100);
  const even = (value * 8) % 2 === 1 ? (low + (low % 2)) / 100 : value;
  return even.toFixed(2).replace(/\B(?=(\d{3})+\.)/g, ",");
}
const percent = (share) => `${fixed(100 * share)}%`;
const times = (w) => fixed(w > 0 ? w : 0);
/** A score as tables show it (node_scores.py: score_digits). */
function scoreText(value) {
  if (Math.abs(value) < 1000) return String(Number(value.toPrecision(4)));
  const low = Math.floor(value);
  return (value - low === 0.5 ? low + Math.abs(low % 2) : Math.round(value)).toLocaleString("en");
}

/** Header and arrays of the deflated block (map.py: pack). */
async function unpack() {
  const text = byId("payload").textContent;
  byId("payload").remove();
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: it lacks DecompressionStream");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const kinds = { u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array }, arrays = {};
  let at = Math.ceil((4 + length) / 8) * 8;
  for (const [name, kind, count] of header.arrays) {
    arrays[name] = new kinds[kind](buffer, at, count);
    at += Math.ceil(arrays[name].byteLength / 8) * 8;
  }
  return { header, arrays };
}

function summed(differences) {
  const out = new Uint32Array(differences.length);
  let last = 0;
  for (let i = 0; i < out.length; i += 1) out[i] = last += differences[i];
  return out;
}

function search(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
  return sorted[low] === value ? low : -1;
}

/** The tree with sizes, shares of the tasks, terms and texts. A node is {level, row}; the root is {level: 0, row: 0}. */
class Tree {
  constructor({ header, arrays }) {
    Object.assign(this, { arity: header.arity, depth: header.depth, levels: [] });
    this.levels[this.depth] = { nodes: summed(arrays.nodes), windows: arrays.windows };
    for (let level = this.depth; level > 0; level -= 1) this.addParents(level);
    this.total = this.levels[0].windows[0];
    this.tasks = header.tasks.map(({ name, level, colour }, i) => {
      const shares = this.summedUp(level, arrays[`task_${i}`]), corpus = arrays[`corpus_${i}`];
      return { name, level, colour, shares, corpus: corpus ? this.summedUp(level, corpus) : null };
    });
    this.scores = header.scores.map((score, i) => (
      { ...score, colour: "base", level: Math.min(2, this.depth), means: this.averaged(arrays[`score_${i}`]) }
    ));
    this.layers = [...this.tasks, ...this.scores]; // in the order of the list to colour by
    this.texts = [];
    for (const { level, terms, texts } of header.texts) {
      const nodes = summed(arrays[`text_nodes_${level}`]), of = new Map();
      nodes.forEach((node, i) => of.set(search(this.levels[level].nodes, node), i));
      this.texts[level] = { of, terms, texts };
    }
  }

  addParents(level) {
    const { nodes, windows } = this.levels[level], above = [], sizes = [], first = [];
    const parent = (this.levels[level].parent = new Uint32Array(nodes.length));
    for (let row = 0; row < nodes.length; row += 1) {
      const id = Math.floor(nodes[row] / this.arity);
      if (above[above.length - 1] !== id || !above.length) { above.push(id); sizes.push(0); first.push(row); }
      sizes[sizes.length - 1] += windows[row];
      parent[row] = above.length - 1;
    }
    first.push(nodes.length);
    this.levels[level - 1] = { nodes: above, windows: sizes, first };
  }

  /** Shares of the nodes of a level, and of all levels above it. */
  summedUp(level, ofLevel) {
    const shares = [];
    shares[level] = ofLevel;
    for (let at = level; at > 0; at -= 1) {
      shares[at - 1] = new Float64Array(this.levels[at - 1].nodes.length);
      for (let row = 0; row < shares[at].length; row += 1) shares[at - 1][this.levels[at].parent[row]] += shares[at][row];
    }
    return shares;
  }

  /** Means of the nodes of all levels, of those of the deepest one. */
  averaged(ofDeepest) {
    const sums = this.summedUp(this.depth, Float64Array.from(ofDeepest, (mean, row) => mean * this.windowsOf({ level: this.depth, row })));
    return sums.map((ofLevel, level) => ofLevel.map((sum, row) => sum / this.windowsOf({ level, row })));
  }

  childrenOf({ level, row }) {
    if (level >= this.depth) return [];
    const { first } = this.levels[level];
    return Array.from({ length: first[row + 1] - first[row] }, (_, i) => first[row] + i);
  }

  parentOf({ level, row }) { return level ? { level: level - 1, row: this.levels[level].parent[row] } : null; }
  windowsOf({ level, row }) { return this.levels[level].windows[row]; }
  shareOf(node) { return this.windowsOf(node) / this.total; }
  nodeOf({ level, row }) { return this.levels[level].nodes[row]; }

  /** w(c); below a task's level that of the node there, because its mass is spread by size. Of a score, the w that has
   * the colour of its mean. */
  weightOf(task, node) {
    if (task.means) return 2 ** (SCALE_LOG2 * this.placeOf(task, task.means[node.level][node.row]));
    while (node.level > task.level) node = this.parentOf(node);
    return task.shares[node.level][node.row] / this.corpusOf(task, node) || 0;
  }

  /** Where a mean stands on the scale of a score, from -1 to 1. */
  placeOf({ low, middle, high }, mean) {
    const span = mean < middle ? middle - low : high - middle;
    return span > 0 ? Math.max(-1, Math.min(1, (mean - middle) / span)) : 0;
  }

  /** Share of the corpus that a task or run is compared with: of a run, the generation that it was served from. */
  corpusOf(task, node) { return task.corpus ? task.corpus[node.level][node.row] : this.shareOf(node); }

  /** A task's share; below its level by size. */
  taskShareOf(task, node) {
    return node.level > task.level ? this.weightOf(task, node) * this.shareOf(node) : task.shares[node.level][node.row];
  }

  /** The cluster of a task's level that holds most of it; of a score, that with the highest mean. */
  heaviestOf({ level, shares, means }) {
    const values = (means || shares)[level];
    return { level, row: values.reduce((best, value, row) => (value > values[best] ? row : best), 0) };
  }

  pathOf(node) {
    const digits = [];
    for (let at = node; at.level > 0; at = this.parentOf(at)) digits.unshift(this.nodeOf(at) % this.arity);
    return digits.join("/");
  }

  /** Terms and text of a node, or of the closest one above that has some. */
  aboutOf(node) {
    for (let at = node; at && at.level > 0; at = this.parentOf(at)) {
      const texts = this.texts[at.level], i = texts.of.get(at.row);
      if (i !== undefined && (texts.terms[i] || texts.texts[i])) return { from: at, terms: texts.terms[i], text: texts.texts[i] };
    }
    return { from: node, terms: "", text: "" };
  }

  /** Nodes whose path, terms or text hold all words of a query: by path, then terms, then text; coarse before fine. */
  find(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean), found = [];
    if (!words.length) return found;
    if (/^\d+(\/\d+)*\/?$/.test(query.trim())) {
      const digits = query.split("/").filter(Boolean).map(Number);
      let node = { level: 0, row: 0 };
      for (const digit of digits) {
        const row = node && node.level < this.depth ? search(this.levels[node.level + 1].nodes, this.nodeOf(node) * this.arity + digit) : -1;
        node = row < 0 ? null : { level: node.level + 1, row };
      }
      if (node && node.level) found.push({ node, rank: 0 });
    }
    this.texts.forEach(({ of, terms, texts }, level) => {
      for (const [row, i] of of) {
        const inTerms = terms[i].toLowerCase();
        if (words.every((word) => inTerms.includes(word))) found.push({ node: { level, row }, rank: 1 });
        else {
          const all = `${inTerms} ${texts[i].toLowerCase()}`;
          if (words.every((word) => all.includes(word))) found.push({ node: { level, row }, rank: 2 });
        }
      }
    });
    return found;
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Text with the searched words marked. */
function marked(text, words) {
  const out = element("bdi"), pattern = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  text.split(new RegExp(`(${pattern})`, "i")).forEach((part, i) => out.append(i % 2 ? element("mark", "", part) : part));
  return out;
}

class Explorer {
  constructor(tree) {
    this.tree = tree;
    this.focus = { level: 0, row: 0 };
    this.task = tree.layers[byId("task")?.value ?? 0] || null;
    this.hits = null; // of a search: per level row -> 1 found, 2 on the way to one
    this.map = new Treemap(byId("treemap"), {
      childrenOf: (node) => tree.childrenOf(node),
      windowsOf: (node) => tree.windowsOf(node),
      weightOf: (node) => (this.task ? tree.weightOf(this.task, node) : 1),
      labelOf: (node) => { const about = tree.aboutOf(node); return (about.from.level === node.level && about.terms) || tree.pathOf(node); },
      hitOf: (node) => (this.hits ? this.hits[node.level].has(node.row) : null),
    });
    this.listen();
    this.drawScale();
    const heaviest = this.task && tree.heaviestOf(this.task);
    if (heaviest) this.focus = tree.parentOf(heaviest);
    this.map.show(this.focus);
    this.select(heaviest || this.map.tiles[0], false);
  }

  listen() {
    const canvas = byId("treemap");
    const place = (event) => { const box = canvas.getBoundingClientRect(); return this.map.at(event.clientX - box.left, event.clientY - box.top); };
    canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") this.point(place(event)); });
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("pointerdown", (event) => { this.touched = event.pointerType === "touch"; });
    canvas.addEventListener("click", (event) => this.press(place(event)));
    canvas.addEventListener("keydown", (event) => this.key(event));
    byId("task")?.addEventListener("change", (event) => this.choose(this.tree.layers[event.target.value]));
    byId("heaviest-cluster")?.addEventListener("click", () => this.jump(this.tree.heaviestOf(this.task)));
    const field = byId("search");
    field.addEventListener("input", () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.search(field.value), 120); });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { clearTimeout(this.timer); this.search(field.value); byId("hits").querySelector("button")?.click(); }
      if (event.key === "Escape") { field.value = ""; this.search(""); }
    });
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button.node[data-node]");
      if (button) this.jump({ level: Number(button.dataset.level), row: search(this.tree.levels[button.dataset.level].nodes, Number(button.dataset.node)) });
    });
    new ResizeObserver(() => this.resize()).observe(canvas);
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", () => this.repaint());
  }

  resize() {
    const { width, height } = byId("treemap").getBoundingClientRect();
    if (Math.abs(width - this.map.width) > 0.5 || Math.abs(height - this.map.height) > 0.5) this.map.show(this.focus);
  }

  choose(task) {
    this.task = task;
    byId("chosen").className = `dot ${task.colour}`;
    this.drawScale();
    this.redraw();
    this.tell(this.selected);
  }

  repaint() { this.map.palette = readPalette(); this.drawScale(); this.redraw(); }
  redraw() { this.map.token = null; this.map.draw(); this.describe(this.selected || this.focus); }

  point(found) {
    const node = found ? found.deepest : null;
    if (node === this.pointed) return;
    this.pointed = node;
    this.map.compose(this.selected, node);
    this.describe(node || this.selected || this.focus);
  }

  press(found) {
    if (!found) return;
    const again = this.selected && this.selected.level === found.tile.level && this.selected.row === found.tile.row;
    if (this.touched && !again) this.select(found.tile);
    else if (found.tile.cells.length) this.enter(found.tile);
    else this.select(found.tile);
  }

  key(event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrows[event.key]) this.select(this.map.neighbour(this.selected, ...arrows[event.key]) || this.selected);
    else if (event.key === "Enter" || event.key === " ") { if (this.selected && this.tree.childrenOf(this.selected).length) this.enter(this.selected); }
    else if (event.key === "Escape" || event.key === "Backspace") this.leave();
    else if (event.key === "Home") this.go({ level: 0, row: 0 });
    else return;
    event.preventDefault();
  }

  select(node, aloud = true) {
    if (!node) return;
    this.selected = { level: node.level, row: node.row };
    this.pointed = null;
    this.map.compose(this.selected, null);
    this.describe(this.selected);
    this.drawBreadcrumb();
    if (aloud) this.tell(this.selected);
  }

  enter(node) { this.go(node); }
  leave() { const parent = this.tree.parentOf(this.focus); if (parent) this.go(parent, this.focus); }

  /** Show another node's children, with a transition where the two maps have a rectangle in common. */
  go(focus, selected) {
    const before = this.focus, old = this.map.snapshot();
    const inner = this.map.rectangleOf(focus);
    this.focus = { level: focus.level, row: focus.row };
    this.map.show(this.focus);
    const outer = this.map.rectangleOf(before);
    this.select(selected || this.map.tiles[0]);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (still || (!inner && !outer) || (inner && focus.level <= before.level)) return;
    this.map.animate(old, inner || outer, Boolean(inner), () => this.map.compose(this.selected, this.pointed));
  }

  jump(node) {
    if (node.row < 0) return;
    this.go(this.tree.parentOf(node), node);
    byId("treemap").scrollIntoView({ block: "nearest" });
    byId("treemap").focus({ preventScroll: true });
  }

  tell(node) {
    const { tree } = this, about = tree.aboutOf(node);
    const { task } = this;
    const scored = task?.means ? `, mean ${scoreText(task.means[node.level][node.row])} of ${task.name}` : "";
    const weight = task && !task.means ? `, w ${times(tree.weightOf(task, node))} for ${task.name}` : scored;
    byId("announced").textContent = `Cluster ${tree.pathOf(node) || "root"}: ${about.terms}. ${percent(tree.shareOf(node))} of the corpus${weight}.`;
  }

  describe(node) {
    const { tree } = this, panel = byId("panel"), about = tree.aboutOf(node), path = tree.pathOf(node);
    const title = element("h3", "", path || "The whole corpus");
    if (path) title.append(element("small", "", `level ${node.level}, node ${tree.nodeOf(node)}`));
    const terms = element("p", "terms");
    for (const term of about.terms.split(" ").filter(Boolean)) terms.append(element("bdi", "term", term));
    const below = tree.childrenOf(node).length;
    const size = element("p", "size", `${tree.windowsOf(node).toLocaleString("en")} windows, ${percent(tree.shareOf(node))} of the corpus${below ? `, ${below} clusters inside` : ""}`);
    panel.replaceChildren(title, terms, size);
    if (below && node.level > this.focus.level) {
      const button = element("button", "inside", "Go inside");
      button.type = "button";
      button.addEventListener("click", () => { this.go(node); byId("treemap").focus({ preventScroll: true }); });
      panel.append(button);
    }
    if (tree.tasks.length) panel.append(this.taskTable(node));
    if (tree.scores.length) panel.append(this.scoreTable(node));
    if (about.text) {
      const isNode = about.from.level === node.level;
      panel.append(element("p", "source", isNode ? "A window of it" : `Terms and text of the cluster around it, ${tree.pathOf(about.from)}`));
      const quote = element("blockquote", "", about.text);
      quote.dir = "auto";
      panel.append(quote);
    }
  }

  taskTable(node) {
    const { tree } = this, table = element("table", "tasks"), head = element("tr");
    for (const [name, kind] of [["task or run", ""], ["share", "number"], ["w", "number"], ["", "around"]]) head.append(element("th", kind, name));
    table.append(head);
    for (const task of tree.tasks) {
      const row = element("tr", task === this.task ? "chosen" : ""), weight = tree.weightOf(task, node), bar = element("td", "around");
      const length = weight > 0 ? Math.max(-1, Math.min(1, Math.log2(weight) / SCALE_LOG2)) : -1;
      const fill = element("span", "fill");
      fill.style.left = `${50 + 50 * Math.min(0, length)}%`;
      fill.style.width = `${50 * Math.abs(length)}%`;
      fill.style.background = this.map.palette.fill(weight);
      if (weight > 0) bar.append(fill);
      const name = element("th");
      name.append(element("span", `dot ${task.colour}`), element("bdi", "", task.name));
      row.append(name, element("td", "number", percent(tree.taskShareOf(task, node))), element("td", "number", times(weight)), bar);
      table.append(row);
    }
    return table;
  }

  scoreTable(node) {
    const table = element("table", "scores"), head = element("tr");
    for (const [name, kind] of [["score", ""], ["mean", "number"], ["of all windows", "number"]]) head.append(element("th", kind, name));
    table.append(head);
    for (const score of this.tree.scores) {
      const row = element("tr", score === this.task ? "chosen" : ""), name = element("th");
      name.append(element("bdi", "", score.name));
      row.append(name, element("td", "number", scoreText(score.means[node.level][node.row])), element("td", "number", scoreText(score.middle)));
      table.append(row);
    }
    return table;
  }

  drawBreadcrumb() {
    const steps = [];
    for (let at = this.focus; at; at = this.tree.parentOf(at)) steps.unshift(at);
    byId("breadcrumb").replaceChildren(...steps.map((node) => {
      const terms = this.tree.aboutOf(node).terms.split(" ").slice(0, 3).join(" ");
      const button = element("button", "", node.level ? `${this.tree.pathOf(node)} ${terms}` : "All clusters");
      button.type = "button";
      if (node.level === this.focus.level) button.setAttribute("aria-current", "location");
      button.addEventListener("click", () => this.go(node));
      return button;
    }));
  }

  drawScale() {
    const { palette } = this.map, scale = byId("scale"), { task } = this;
    if (!task) { scale.hidden = true; return; }
    byId("heaviest-cluster").textContent = `Go to its ${task.means ? "highest" : "heaviest"} cluster`;
    const ends = task.means ? [task.low, task.middle, task.high].map(scoreText) : null;
    const written = ends ? [`≤${ends[0]}`, ends[1], `≥${ends[2]}`] : ["≤1/32", "1/4", "as often", "4×", "≥32×"];
    scale.setAttribute("aria-label", ends ? `Colours: mean of ${task.name} from at most ${ends[0]} to at least ${ends[2]}` : "Colours: importance weight from at most 1/32 to at least 32");
    const bar = element("span", "ramp-bar"), labels = element("span", "labels");
    bar.style.background = `linear-gradient(90deg, ${Array.from({ length: 17 }, (_, i) => palette.steps[16 * i]).join(",")})`;
    for (const label of written) labels.append(element("span", "", label));
    const none = element("span", "none"), swatch = element("span", "swatch");
    swatch.style.background = palette.none;
    none.append(swatch, "never");
    const ramp = element("span", "ramp");
    ramp.append(bar, labels);
    scale.replaceChildren(...(ends ? [ramp] : [ramp, none]));
  }

  search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean), found = this.tree.find(query);
    byId("results").hidden = !words.length;
    this.hits = null;
    if (words.length) {
      this.hits = this.tree.levels.map(() => new Map());
      for (const { node } of found) {
        this.hits[node.level].set(node.row, 1);
        for (let at = this.tree.parentOf(node); at; at = this.tree.parentOf(at)) if (!this.hits[at.level].has(at.row)) this.hits[at.level].set(at.row, 2);
      }
      this.listHits(found, words);
    }
    this.redraw();
  }

  listHits(found, words) {
    const weight = (node) => (this.task ? this.tree.weightOf(this.task, node) : this.tree.shareOf(node));
    const best = found.map((hit) => ({ ...hit, weight: weight(hit.node) })).sort((a, b) => a.rank - b.rank || a.node.level - b.node.level || b.weight - a.weight).slice(0, 40);
    byId("found").textContent = found.length ? `${found.length.toLocaleString("en")} clusters${found.length > best.length ? `; the first ${best.length}` : ""}` : "Nothing found.";
    byId("hits").replaceChildren(...best.map(({ node }) => {
      const { terms, text } = this.tree.aboutOf(node), item = element("li"), button = element("button", "hit");
      const at = Math.max(0, words.reduce((least, word) => { const i = text.toLowerCase().indexOf(word); return i >= 0 && i < least ? i : least; }, Infinity));
      button.type = "button";
      button.append(element("span", "path", this.tree.pathOf(node)), marked(terms, words), element("br"), marked(Number.isFinite(at) ? `${at > 30 ? "…" : ""}${text.slice(Math.max(0, at - 30), at + 90)}` : text.slice(0, 110), words));
      button.addEventListener("click", () => this.jump(node));
      item.append(button);
      return item;
    }));
  }
}

document.documentElement.dataset.script = "";
unpack().then((data) => {
  const explorer = new Explorer(new Tree(data));
  document.documentElement.dataset.ready = `${Math.round(performance.now())}`;
  return explorer;
}).catch((error) => {
  byId("trouble").textContent = `The map cannot be shown: ${error.message}.`;
  byId("trouble").hidden = false;
});
