"use strict";
// The map: rectangles by size (squarified treemap), two levels at a time, drawn on a canvas. Laid out for the node in
// focus alone, so a tree of 262,144 leaves costs what 64 + 4,096 rectangles cost.

const STRIP = 18; // height of the strip that holds a rectangle's terms
const GAP = 2;
const SCALE_LOG2 = 5; // colours end at 2^-5 and 2^5

/** Rectangles [x, y, width, height] of areas in proportion to `sizes`, which fall, as square as can be. */
function squarify(sizes, x, y, width, height) {
  const out = new Float32Array(4 * sizes.length);
  let rest = 0;
  for (const size of sizes) rest += size;
  let start = 0;
  while (start < sizes.length) {
    const short = Math.min(width, height);
    const scale = rest > 0 ? (width * height) / rest : 0;
    let end = start, sum = 0, worst = Infinity;
    while (end < sizes.length) {
      const grown = sum + sizes[end];
      const side = short > 0 ? (grown * scale) / short : 0; // thickness of the row
      const largest = side > 0 ? (sizes[start] * scale) / side : 0, smallest = side > 0 ? (sizes[end] * scale) / side : 0;
      const ratio = Math.max(largest / side, side / smallest);
      if (end > start && !(ratio <= worst)) break;
      worst = ratio; sum = grown; end += 1;
    }
    const thick = short > 0 ? Math.min((sum * scale) / short, Math.max(width, height)) : 0;
    let along = 0;
    for (let i = start; i < end; i += 1) {
      const length = sum > 0 ? (sizes[i] / sum) * short : 0;
      out.set(width >= height ? [x, y + along, thick, length] : [x + along, y, length, thick], 4 * i);
      along += length;
    }
    if (width >= height) { x += thick; width = Math.max(0, width - thick); } else { y += thick; height = Math.max(0, height - thick); }
    rest -= sum; start = end;
  }
  return out;
}

/** The colours of the style sheet: 257 steps of w(c) on a logarithmic scale, and the few others. */
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const stops = ["--map-least", "--map-less", "--map-even", "--map-more", "--map-most"].map(read).map(parse);
  const steps = [], dark = [];
  for (let i = 0; i <= 256; i += 1) {
    const at = Math.min(3, Math.floor(i / 64)), part = i / 64 - at;
    const rgb = [0, 1, 2].map((c) => Math.round(stops[at][c] * (1 - part) + stops[at + 1][c] * part));
    steps.push(`rgb(${rgb.join(",")})`);
    dark.push(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 140);
  }
  const none = read("--map-none"), noneRgb = parse(none);
  return {
    steps, none, ground: read("--ground"), text: read("--text"), quiet: read("--quiet"), font: getComputedStyle(document.body).fontFamily,
    ink: (w) => (w > 0 ? dark[step(w)] : 0.299 * noneRgb[0] + 0.587 * noneRgb[1] + 0.114 * noneRgb[2] < 140) ? "#ffffff" : "#12161b",
    fill: (w) => (w > 0 ? steps[step(w)] : none),
  };
  function step(w) {
    return Math.round(128 + 128 * Math.max(-1, Math.min(1, Math.log2(w) / SCALE_LOG2)));
  }
}

class Treemap {
  /** `source` answers for nodes {level, row}: childrenOf, windowsOf, weightOf, labelOf, hitOf. */
  constructor(canvas, source) {
    this.canvas = canvas;
    this.source = source;
    this.still = document.createElement("canvas"); // the map without what moves
    this.tiles = [];
    this.palette = readPalette();
  }

  /** Lay out and draw the children of a node, and theirs. */
  show(focus) {
    const { width, height } = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.still]) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
    }
    this.ratio = ratio; this.width = width; this.height = height; this.focus = focus;
    this.tiles = this.place(focus, 0, 0, width, height);
    for (const tile of this.tiles) {
      const strip = tile.width > 34 && tile.height > 2.2 * STRIP ? STRIP : 0;
      tile.strip = strip;
      const border = tile.width > 12 && tile.height > 12 ? GAP : 0.5;
      tile.cells = this.place(tile, tile.x + border, tile.y + Math.max(strip, border), tile.width - 2 * border, tile.height - Math.max(strip, border) - border);
    }
    this.draw();
  }

  /** The children of a node as rectangles. */
  place(node, x, y, width, height) {
    const rows = this.source.childrenOf(node), level = node.level + 1;
    const order = Array.from(rows, (row) => [row, this.source.windowsOf({ level, row })]).sort((a, b) => b[1] - a[1]);
    const rectangles = squarify(order.map((pair) => pair[1]), x, y, Math.max(0, width), Math.max(0, height));
    return order.map(([row], i) => ({
      level, row, x: rectangles[4 * i], y: rectangles[4 * i + 1], width: rectangles[4 * i + 2], height: rectangles[4 * i + 3],
    }));
  }

  /** Draw again what is laid out, with the colours of now. */
  draw() {
    const context = this.still.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.fillStyle = this.palette.ground;
    context.fillRect(0, 0, this.width, this.height);
    for (const tile of this.tiles) this.drawTile(context, tile);
    this.compose();
  }

  drawTile(context, tile) {
    const { source, palette } = this;
    const weight = source.weightOf(tile), hit = source.hitOf(tile);
    const gap = tile.width > 6 && tile.height > 6 ? 1 : 0.25;
    const shown = tile.cells.length ? tile.strip - 1 : Math.max(0.5, tile.height - gap);
    context.fillStyle = palette.fill(weight);
    if (shown > 0) context.fillRect(tile.x, tile.y, Math.max(0.5, tile.width - gap), shown);
    for (const cell of tile.cells) {
      const thin = cell.width > 5 && cell.height > 5 ? 1 : cell.width > 2.5 && cell.height > 2.5 ? 0.5 : 0;
      context.fillStyle = palette.fill(source.weightOf(cell));
      context.fillRect(cell.x, cell.y, cell.width - thin, cell.height - thin);
    }
    if (hit !== null) this.veil(context, tile, hit);
    const ink = hit === false ? palette.quiet : palette.ink(weight);
    if (tile.cells.length === 0) this.writeLines(context, tile, ink);
    else if (tile.strip) this.writeLine(context, source.labelOf(tile), tile, ink);
  }

  /** Cover what a search did not find. */
  veil(context, tile, hit) {
    context.fillStyle = this.palette.ground;
    context.globalAlpha = 0.82;
    if (!hit) context.fillRect(tile.x, tile.y, tile.width, tile.height);
    else {
      for (const cell of tile.cells) {
        if (!this.source.hitOf(cell)) context.fillRect(cell.x, cell.y, cell.width, cell.height);
      }
    }
    context.globalAlpha = 1;
    context.strokeStyle = this.palette.text;
    context.lineWidth = 1.5;
    for (const cell of hit ? tile.cells : []) {
      if (this.source.hitOf(cell) && cell.width > 3 && cell.height > 3) context.strokeRect(cell.x + 0.75, cell.y + 0.75, cell.width - 2.5, cell.height - 2.5);
    }
  }

  writeLine(context, label, tile, ink) {
    context.font = `600 11.5px ${this.palette.font}`;
    context.fillStyle = ink;
    context.textBaseline = "middle";
    context.direction = "ltr";
    const shown = fitted(context, label, tile.width - 11);
    if (shown) context.fillText(shown, tile.x + 5, tile.y + STRIP / 2);
  }

  /** The terms of a rectangle without children, on as many lines as fit. */
  writeLines(context, tile, ink) {
    if (tile.width < 34 || tile.height < 16) return;
    const size = tile.width > 110 && tile.height > 60 ? 13 : 11.5;
    context.font = `600 ${size}px ${this.palette.font}`;
    context.fillStyle = ink;
    context.textBaseline = "top";
    const words = this.source.labelOf(tile).split(" ");
    let y = tile.y + 5;
    while (words.length && y + size < tile.y + tile.height - 2) {
      let line = words.shift();
      while (words.length && context.measureText(`${line} ${words[0]}`).width < tile.width - 10) line += ` ${words.shift()}`;
      const shown = fitted(context, line, tile.width - 9);
      if (shown) context.fillText(shown, tile.x + 5, y);
      y += size + 4;
    }
  }

  /** Put the still map on the screen, and the outlines of what is selected and pointed at over it. */
  compose(selected = this.selected, pointed = this.pointed) {
    this.selected = selected; this.pointed = pointed;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.drawImage(this.still, 0, 0);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    for (const [node, width] of [[pointed, 1.5], [selected, 3]]) {
      const found = node && this.rectangleOf(node);
      if (!found) continue;
      context.lineWidth = width;
      context.strokeStyle = this.palette.text;
      context.strokeRect(found.x + width / 2 - 0.5, found.y + width / 2 - 0.5, Math.max(1, found.width - width), Math.max(1, found.height - width));
    }
  }

  rectangleOf(node) {
    for (const tile of this.tiles) {
      if (tile.level === node.level && tile.row === node.row) return tile;
      if (tile.level + 1 !== node.level) continue;
      const cell = tile.cells.find((cell) => cell.row === node.row);
      if (cell) return cell;
    }
    return null;
  }

  /** The rectangle of the first level at a point, and the deepest one there. */
  at(x, y) {
    const inside = (r) => x >= r.x && x < r.x + r.width && y >= r.y && y < r.y + r.height;
    const tile = this.tiles.find(inside);
    return tile ? { tile, deepest: tile.cells.find(inside) || tile } : null;
  }

  /** The closest rectangle in a direction: the distance to the side counts double. */
  neighbour(node, dx, dy) {
    const from = this.rectangleOf(node);
    if (!from) return this.tiles[0] || null;
    const middle = (r) => [r.x + r.width / 2, r.y + r.height / 2];
    const [x, y] = middle(from);
    let best = null, least = Infinity;
    for (const tile of this.tiles) {
      const [a, b] = middle(tile);
      const ahead = (a - x) * dx + (b - y) * dy, aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      if (ahead > 1 && ahead + 2 * aside < least) { best = tile; least = ahead + 2 * aside; }
    }
    return best;
  }

  /** A copy of the still map, for a transition. */
  snapshot() {
    const copy = document.createElement("canvas");
    copy.width = this.still.width; copy.height = this.still.height;
    copy.getContext("2d").drawImage(this.still, 0, 0);
    return copy;
  }

  /** Grow from a rectangle of the old map to the new one, or shrink the old map into a rectangle of the new one. */
  animate(old, rectangle, inwards, done) {
    const context = this.canvas.getContext("2d"), started = performance.now(), token = (this.token = {});
    const full = { x: 0, y: 0, width: this.width, height: this.height };
    const frame = (now) => {
      if (this.token !== token) return;
      const linear = Math.min(1, Math.max(0, (now - started) / 280)), eased = 1 - (1 - linear) ** 3;
      const part = inwards ? eased : 1 - eased;
      const now_ = (key) => rectangle[key] * (1 - part) + full[key] * part;
      const [x, y, width, height] = ["x", "y", "width", "height"].map(now_);
      const sx = width / rectangle.width, sy = height / rectangle.height;
      const [outer, inner] = inwards ? [old, this.still] : [this.still, old];
      context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      context.globalAlpha = 1;
      context.drawImage(outer, x - rectangle.x * sx, y - rectangle.y * sy, this.width * sx, this.height * sy);
      context.globalAlpha = part;
      context.drawImage(inner, x, y, width, height);
      if (linear < 1) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  }
}

/** As much of a text as fits a width, or nothing. */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let low = 0, high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle; else high = middle - 1;
  }
  return low > 2 ? `${text.slice(0, low).trimEnd()}…` : "";
}
