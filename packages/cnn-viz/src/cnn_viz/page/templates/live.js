// Dropped or chosen images are sent to the local server, which answers with predictions and maps.
"use strict";
(() => {
  const one = selector => document.querySelector(selector);
  const drop = one("#drop"), said = one("#said");
  let files = [];
  const imageOf = (source, name) => Object.assign(new Image(), { src: `data:image/png;base64,${source}`, alt: name });
  const ask = (query, file) => fetch(query, { method: "POST", body: file, headers: { "X-Cnnzoo": "1" } });
  const explain = async file => {
    const wanted = new URLSearchParams(["method", "stage", "class"].map(name => [name, one(`[name=${name}]`).value]));
    const answer = await ask(`explain?${wanted}`, file);
    const found = await answer.json(), figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    if (!answer.ok) {
      figure.className = "wrong";
      caption.textContent = `${file.name}: ${found.error}`;
    } else {
      const over = Object.assign(document.createElement("div"), { className: "over" });
      const heat = imageOf(found.overlay, "image with the map");
      heat.className = "heat";
      over.append(imageOf(found.image, file.name), heat);
      if (found.empty) over.append(Object.assign(document.createElement("span"), { className: "empty", textContent: "no evidence for this class" }));
      caption.textContent = `${file.name}: ${found.classes.map(([name, p]) => `${name} ${(100 * p).toFixed(1)} %`).join(", ")}. Map for ${found.explained}.`;
      figure.append(over);
    }
    figure.append(caption);
    return figure;
  };
  const show = async () => {
    said.replaceChildren("…");
    const figures = [];
    for (const file of files) figures.push(await explain(file));
    said.replaceChildren(...figures);
  };
  // The first image's feature maps: a click on a value shows how it is computed.
  const showMaps = async () => {
    const answer = await ask("maps", files[0]), found = await answer.json();
    one("#maps").hidden = !answer.ok;
    if (!answer.ok) return;
    const [height, width] = found.size;
    one("#layer").textContent = `The maps of ${found.layer} for ${files[0].name}, ${height} x ${width}: click a value to see how it is computed.`;
    one("#grid").replaceChildren(...found.maps.map((source, channel) => {
      const map = imageOf(source, `map ${channel}`);
      map.addEventListener("click", async event => {
        const row = Math.min(Math.floor(event.offsetY / map.clientHeight * height), height - 1);
        const column = Math.min(Math.floor(event.offsetX / map.clientWidth * width), width - 1);
        const number = await (await ask(`number?channel=${channel}&row=${row}&column=${column}`, files[0])).json();
        one("#number").replaceChildren(imageOf(number.figure, `map ${channel}, row ${row}, column ${column}: ${number.value}`));
      });
      return map;
    }));
    one("#number").replaceChildren();
  };
  const take = list => {
    files = [...list].slice(0, 24);
    show();
    if (files.length) showMaps();
  };
  for (const name of ["dragover", "drop"]) {
    addEventListener(name, event => {
      event.preventDefault();
      drop.classList.toggle("over-it", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  one("[type=file]").addEventListener("change", event => take(event.target.files));
  for (const name of ["method", "stage", "class"]) one(`[name=${name}]`).addEventListener("change", show);
  one("[name=opacity]").addEventListener("input", event =>
    document.documentElement.style.setProperty("--heat", event.target.value / 100));
})();
