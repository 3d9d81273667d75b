// The interactive report, without libraries. Untrusted text is only set as textContent, so it
// cannot become markup.
"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const json = id => JSON.parse(one(id)?.textContent ?? "null");
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const u16 = text => new Uint16Array(bytes(text).buffer);
  const clamp = (low, x, high) => Math.min(Math.max(x, low), high);
  const percent = p => `${(100 * p).toFixed()} %`;
  const on = (node, kind, act, how) => node?.addEventListener(kind, act, how);
  const make = (tag, textContent = "", className = "") =>
    Object.assign(document.createElement(tag), { textContent, className });

  // Curves: show the values of the epoch at the pointer.
  const epochs = json("#numbers").epochs;
  for (const chart of all("svg.chart")) {
    const keys = JSON.parse(chart.dataset.keys);
    const [left, right] = chart.dataset.x.split(" ").map(Number);
    const at = one(".at", chart), output = one("output", chart.parentElement);
    const label = output.textContent;
    on(chart, "pointermove", event => {
      const box = chart.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * 400 - left) / (right - left);
      const last = epochs.length - 1, place = clamp(0, Math.round(share * last), last);
      const x = left + (right - left) * (last ? place / last : 0.5);
      at.setAttribute("d", `M${x} 8V190`);
      const line = epochs[place];
      const shown = (key, value) => /\/(top|miou)/.test(key) ? `${(100 * value).toFixed(2)} %` : +value.toPrecision(4);
      output.textContent = `epoch ${line.epoch}: ` + Object.entries(keys).filter(([, key]) => key in line)
        .map(([name, key]) => `${name} ${shown(key, line[key])}`).join(", ");
    });
    on(chart, "pointerleave", () => {
      at.setAttribute("d", "");
      output.textContent = label;
    });
  }

  // Tables: a click on a heading sorts by its column; another click reverses the order.
  for (const button of all("table.sortable thead button")) {
    on(button, "click", () => {
      const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
      const column = head.cellIndex, down = head.getAttribute("aria-sort") !== "descending";
      const value = row => {
        const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[,>]/g, ""));
        return column ? isNaN(number) ? -Infinity : number : text;
      };
      const order = (a, b) => (down ? -1 : 1) * ((value(a) > value(b)) - (value(a) < value(b)));
      body.append(...[...body.rows].sort(order));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  }

  const data = json("#explorer");
  if (!data) return;
  const { classes, columns, tile: [tall, wide] } = data, long = Math.max(tall, wide);
  const targets = u16(data.targets), predicted = u16(data.predicted);
  const confidence = bytes(data.confidence), number = index => (data.indices[index] ?? index) + 1;
  const loadImage = text => createImageBitmap(new Blob([bytes(text)], { type: "image/webp" }));
  const sheet = loadImage(data.sheet);

  // Thumbnails are tiles of the sprite sheet.
  const draw = (image, context, index, x, y, size) => context.drawImage(
    image, (index % columns) * wide, Math.floor(index / columns) * tall, wide, tall,
    x, y, size * wide / long, size * tall / long);
  const thumbnail = index => {
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [wide, tall];
    sheet.then(image => draw(image, canvas.getContext("2d"), index, 0, 0, long));
    return canvas;
  };
  const isWrong = index => targets[index] !== predicted[index];
  const describe = index => `${classes[predicted[index]]} ${percent(confidence[index] / 255)}` +
    (isWrong(index) ? `, true: ${classes[targets[index]]}` : "");
  const MAX_TILES = 120; // in a grid
  const grid = (selector, title, indices) => {
    const list = make("div", "", "grid"), count = indices.length;
    one(selector).replaceChildren(make("p", `${title}: ${count} image${count - 1 ? "s" : ""}` +
      (count > MAX_TILES ? `, ${MAX_TILES} of them shown` : ""), "note"), list);
    for (const index of indices.slice(0, MAX_TILES)) {
      const cell = make("figure", "", isWrong(index) ? "wrong" : "");
      cell.append(thumbnail(index), make("figcaption", describe(index)));
      cell.title = `image ${number(index)}: ${describe(index)}`;
      list.append(cell);
    }
  };

  // Confusion matrix: click a cell to see its images; cells are counts or percentages.
  const cells = all("#confusion td button");
  for (const button of cells) {
    const [t, p] = button.dataset.cell.split(" ").map(Number);
    on(button, "click", () => {
      one("#confusion .chosen")?.classList.remove("chosen");
      button.classList.add("chosen");
      grid("#cell", t === p ? `${classes[t]}, correct` : `${classes[t]} predicted as ${classes[p]}`,
        [...targets.keys()].filter(i => targets[i] === t && predicted[i] === p));
    });
  }
  on(one("#shares"), "change", event => {
    for (const button of cells) {
      button.textContent = event.target.checked ? button.dataset.share : button.dataset.count;
    }
  });

  // Class activation maps, by method, stage, class and opacity.
  const INFERNO = [[0, 0, 4], [51, 10, 95], [120, 28, 109], [187, 55, 84], [237, 105, 37], [252, 165, 10], [252, 255, 164]];
  const inferno = share => {
    const place = share * 6, k = Math.min(Math.floor(place), 5);
    return INFERNO[k].map((low, c) => low + (place - k) * (INFERNO[k + 1][c] - low));
  };
  const gallery = data.cams && one("#cams");
  if (gallery) {
    const { size: [height, width], lists, maps, shapes, boxes, offered } = data.cams;
    const images = loadImage(data.cams.sheet), control = name => one(`[name=${name}]`).value;
    const show = async () => {
      const image = await images, opacity = control("opacity") / 100, stage = control("stage");
      const [h, w] = shapes[stage], values = bytes(maps[control("method")][stage]);
      for (const canvas of all("canvas", gallery)) {
        const k = +canvas.dataset.image, classOf = canvas.dataset.of ?? control("class");
        const row = (lists[k][classOf] ?? offered.indexOf(+classOf)) * lists.length + k;
        const heat = make("canvas"), pixels = new ImageData(w, h);
        let highest = 0;
        for (let i = 0; i < h * w; i++) {
          const value = values[row * Math.ceil(h * w / 2) + (i >> 1)] >> 4 * (i & 1) & 15; // two values in a byte
          highest = Math.max(highest, value);
          pixels.data.set([...inferno(value / 15), 255], 4 * i);
        }
        [heat.width, heat.height] = [w, h];
        heat.getContext("2d").putImageData(pixels, 0, 0);
        const context = canvas.getContext("2d"), whole = [0, 0, canvas.width, canvas.height];
        context.reset();
        context.fillRect(...whole);
        context.globalAlpha = 1 - 0.7 * opacity;
        context.imageSmoothingEnabled = false;
        context.drawImage(image, k * width, 0, width, height, ...whole);
        context.globalAlpha = opacity;
        context.globalCompositeOperation = "screen";
        context.imageSmoothingEnabled = true;
        context.drawImage(heat, ...boxes[stage]);
        one(".empty", canvas.parentElement).hidden = highest;
      }
    };
    on(gallery, "input", show);
    show();
  }

  // Embedding: pan, zoom, lasso, and the neighbours of a point.
  const explorer = data.embedding && one("#embedding");
  if (!explorer) return;
  const [canvas, above] = all("canvas.map", explorer), tip = one(".tip");
  const context = canvas.getContext("2d"), marks = above.getContext("2d");
  const neighbours = u16(data.embedding.neighbours), count = data.embedding.around;
  let placed, points, at; // a method's images, their coordinates, and each image's index in both
  const dark = matchMedia("(prefers-color-scheme: dark)"), colours = data.embedding.colours;
  const hue = k => classes.length <= colours.length ? colours[k]
    : [0, 15].map(more => `hsl(${(k * 137.508) % 360} 65% ${[45, 60, 35][k % 3] + more}%)`);
  const byClass = classes.map((name, k) => [name, hue(k)]), LIMITS = [0.5, 0.8, 0.95, 0.99];
  const COLOURS = { // the groups, an image's group, the hidden groups
    class: [byClass, i => targets[i], new Set()],
    prediction: [byClass, i => predicted[i], new Set()],
    correctness: [[["correct", colours[0]], ["wrong", colours[1]]], i => +isWrong(i), new Set()],
    confidence: [[0, ...LIMITS].map((p, k) => [`from ${percent(p)}`, colours[[4, 1, 3, 0, 2][k]]]),
      i => LIMITS.filter(p => confidence[i] / 255 >= p).length, new Set()],
  };
  let view = { k: 1, x: 0, y: 0 }, groups, groupOf, hidden, lasso, sprites, size, drag;
  const X = j => points[2 * j] / 65535 * size * view.k + view.x;
  const Y = j => points[2 * j + 1] / 65535 * size * view.k + view.y;
  const isVisible = j => !hidden.has(groupOf(placed[j]));
  const paint = () => {
    size = one(".stage").clientWidth;
    for (const ink of [context, marks]) {
      ink.canvas.width = ink.canvas.height = Math.round(size * devicePixelRatio); // clears it
      ink.scale(devicePixelRatio, devicePixelRatio);
    }
    marks.strokeStyle = getComputedStyle(explorer).color;
    const byGroup = groups.map(() => []);
    let visible = 0;
    for (let j = 0; j < placed.length; j++) {
      const x = X(j), y = Y(j);
      if (x < -20 || y < -20 || x > size + 20 || y > size + 20 || !isVisible(j)) continue;
      byGroup[groupOf(placed[j])].push(j);
      visible++;
    }
    const tiled = sprites && view.k > 1.5 && visible <= 400;
    const dot = clamp(2, 60 * Math.sqrt(view.k / placed.length) + 1.5, 7);
    byGroup.forEach((members, g) => {
      context.fillStyle = groups[g][1][+dark.matches];
      for (const j of members) {
        const side = tiled ? 28 : dot;
        context.fillRect(X(j) - side / 2, Y(j) - side / 2, side, side);
        if (tiled) draw(sprites, context, placed[j], X(j) - 12, Y(j) - 12, 24);
      }
    });
  };
  const legend = () => {
    const members = groups.map(() => 0);
    for (const i of placed) members[groupOf(i)]++;
    const named = [...groups.keys()].sort((a, b) => members[b] - members[a]).slice(0, 40).filter(g => members[g] || !groups[40]).sort((a, b) => a - b);
    one(".legend").replaceChildren(...named.map(g => {
      const [name, colours] = groups[g], button = make("button", name), swatch = make("i");
      const press = () => button.ariaPressed = String(!hidden.has(g));
      swatch.style.background = colours[+dark.matches];
      button.prepend(swatch);
      press();
      on(button, "click", () => {
        if (!hidden.delete(g)) hidden.add(g);
        press();
        paint();
      });
      return button;
    }), groups[40] ? `${named.length} of ${groups.length} groups` : "");
  };
  const choose = () => {
    const method = data.embedding.methods[one("[name=embedding]").value];
    [placed, points] = [u16(method.placed), u16(method.xy)];
    at = new Map([...placed].map((index, j) => [index, j]));
    [groups, groupOf, hidden] = COLOURS[one("[name=colour]").value];
    one(".measured").textContent = method.note;
    legend();
    paint();
  };
  const nearest = (x, y) => {
    let best = -1, least = 225;
    for (let j = 0; j < placed.length; j++) {
      const d = (X(j) - x) ** 2 + (Y(j) - y) ** 2;
      if (d < least && isVisible(j)) [best, least] = [j, d];
    }
    return best;
  };
  const around = index => [...neighbours.subarray(index * count, (index + 1) * count)];
  const hover = j => {
    marks.clearRect(0, 0, size, size);
    tip.hidden = j < 0;
    if (j < 0) return;
    for (const n of around(placed[j]).map(index => at.get(index)).filter(n => n >= 0)) {
      marks.beginPath();
      marks.moveTo(X(j), Y(j));
      marks.lineTo(X(n), Y(n));
      marks.stroke();
    }
    marks.strokeRect(X(j) - 6, Y(j) - 6, 12, 12);
    tip.replaceChildren(thumbnail(placed[j]), make("span", `image ${number(placed[j])}: ${describe(placed[j])}`));
    tip.style.transform = `translate(${clamp(0, X(j) + 12, size - 180)}px, ${clamp(0, Y(j) + 12, size - 70)}px)`;
  };
  const zoom = (factor, x = size / 2, y = size / 2) => {
    const k = clamp(1, view.k * factor, 60);
    view = k === 1 && factor !== 1 ? { k, x: 0, y: 0 } : { k, x: x - (x - view.x) * k / view.k, y: y - (y - view.y) * k / view.k };
    paint();
  };
  const inside = (x, y) => lasso.reduce((odd, [x1, y1], k) => {
    const [x2, y2] = lasso[(k + 1) % lasso.length];
    return (y1 > y) !== (y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1 ? !odd : odd;
  }, false);
  on(above, "pointerdown", ({ offsetX: x, offsetY: y, pointerId }) => {
    above.setPointerCapture(pointerId);
    drag = { x, y, moved: false };
    lasso = one("[name=lasso]").checked ? [[x, y]] : undefined;
  });
  on(above, "pointermove", ({ offsetX: x, offsetY: y }) => {
    if (!drag) return hover(nearest(x, y));
    drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > 4;
    if (lasso) {
      lasso.push([x, y]);
      marks.clearRect(0, 0, size, size);
      marks.stroke(new Path2D(`M${lasso.map(point => point.join(" ")).join("L")}Z`));
    } else if (drag.moved) {
      view.x += x - drag.x;
      view.y += y - drag.y;
      [drag.x, drag.y] = [x, y];
      paint();
    }
  });
  on(above, "pointerup", ({ offsetX: x, offsetY: y }) => {
    if (lasso && drag?.moved) {
      const chosen = [...placed.keys()].filter(j => isVisible(j) && inside(X(j), Y(j)));
      grid("#picked", "Inside the lasso", chosen.map(j => placed[j]));
    } else if (drag && !drag.moved) {
      const j = nearest(x, y);
      if (j >= 0) grid("#picked", `Image ${number(placed[j])} and its nearest neighbours in the features`, [placed[j], ...around(placed[j])]);
    }
    drag = lasso = undefined;
  });
  on(above, "pointerleave", () => hover(-1));
  on(above, "wheel", event => {
    event.preventDefault();
    hover(-1);
    zoom(Math.exp(-event.deltaY / 600), event.offsetX, event.offsetY);
  }, { passive: false });
  on(above, "keydown", event => {
    const [x, y] = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key] ?? [0, 0];
    const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[event.key] ?? 1;
    if (!x && !y && factor === 1) return;
    view.x += x;
    view.y += y;
    event.preventDefault();
    zoom(factor);
  });
  for (const [name, factor] of [["closer", 1.5], ["farther", 1 / 1.5], ["whole", 0]]) {
    on(one(`[name=${name}]`), "click", () => zoom(factor));
  }
  on(one(".controls", explorer), "change", choose);
  on(dark, "change", choose);
  on(window, "resize", paint);
  sheet.then(image => { sprites = image; paint(); });
  choose();
})();
