// Send dropped or chosen images to the local server, and show its predictions and maps.
"use strict";
(() => {
  const one = selector => document.querySelector(selector);
  const drop = one("#drop"), results = one("#results");
  let files = [];
  const imageOf = (source, name) => Object.assign(new Image(), { src: `data:image/png;base64,${source}`, alt: name });
  const post = (url, file) => fetch(url, { method: "POST", body: file, headers: { "X-Cnnzoo": "1" } });
  const explain = async file => {
    const query = new URLSearchParams(["method", "stage", "class"].map(name => [name, one(`[name=${name}]`).value]));
    const response = await post(`explain?${query}`, file);
    const content = await response.json(), figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    if (!response.ok) {
      figure.className = "wrong";
      caption.textContent = `${file.name}: ${content.error}`;
    } else {
      const over = Object.assign(document.createElement("div"), { className: "over" });
      const heat = imageOf(content.overlay, "image with the map");
      heat.className = "heat";
      over.append(imageOf(content.image, file.name), heat);
      if (content.empty) over.append(Object.assign(document.createElement("span"), { className: "empty", textContent: "no evidence for this class" }));
      caption.textContent = `${file.name}: ${content.classes.map(([name, p]) => `${name} ${(100 * p).toFixed(1)} %`).join(", ")}. Map for ${content.explained}.`;
      figure.append(over);
    }
    figure.append(caption);
    return figure;
  };
  const show = async () => {
    results.replaceChildren("…");
    const figures = [];
    for (const file of files) figures.push(await explain(file));
    results.replaceChildren(...figures);
  };
  // Show the feature maps of the first image; a click on a value shows how it is computed.
  const showMaps = async () => {
    const response = await post("maps", files[0]), content = await response.json();
    one("#maps").hidden = !response.ok;
    if (!response.ok) return;
    const [height, width] = content.size;
    one("#layer").textContent = `The feature maps of ${content.layer} for ${files[0].name}, ${height} x ${width}. Click a value to see how it is computed.`;
    one("#grid").replaceChildren(...content.maps.map((source, channel) => {
      const map = imageOf(source, `map ${channel}`);
      map.addEventListener("click", async event => {
        const row = Math.min(Math.floor(event.offsetY / map.clientHeight * height), height - 1);
        const column = Math.min(Math.floor(event.offsetX / map.clientWidth * width), width - 1);
        const number = await (await post(`number?channel=${channel}&row=${row}&column=${column}`, files[0])).json();
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
