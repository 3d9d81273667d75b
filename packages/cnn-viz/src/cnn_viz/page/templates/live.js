// Images that are dropped on the page, or chosen, are sent to the program that serves it, on this
// machine, which answers with what the network says and where it looks.
"use strict";
(() => {
  const one = selector => document.querySelector(selector);
  const drop = one("#drop"), said = one("#said");
  let files = [];
  const picture = (source, name) => Object.assign(new Image(), { src: `data:image/png;base64,${source}`, alt: name });
  const ask = (what, file) => fetch(what, { method: "POST", body: file, headers: { "X-Cnnzoo": "1" } });
  const explain = async file => {
    const wanted = new URLSearchParams(["method", "stage", "class"].map(name => [name, one(`[name=${name}]`).value]));
    const answer = await ask(`explain?${wanted}`, file);
    const found = await answer.json(), figure = document.createElement("figure");
    const words = document.createElement("figcaption");
    if (!answer.ok) {
      figure.className = "wrong";
      words.textContent = `${file.name}: ${found.error}`;
    } else {
      const over = Object.assign(document.createElement("div"), { className: "over" });
      const heat = picture(found.overlay, "with the map");
      heat.className = "heat";
      over.append(picture(found.picture, file.name), heat);
      if (found.empty) over.append(Object.assign(document.createElement("span"), { className: "empty", textContent: "nothing speaks for this class" }));
      words.textContent = `${file.name}: ${found.classes.map(([name, p]) => `${name} ${(100 * p).toFixed(1)} %`).join(", ")}. Map for ${found.explained}.`;
      figure.append(over);
    }
    figure.append(words);
    return figure;
  };
  const show = async () => {
    said.replaceChildren("…");
    const figures = [];
    for (const file of files) figures.push(await explain(file));
    said.replaceChildren(...figures);
  };
  // The first image's feature maps: a click on one of their numbers shows how it comes about.
  const look = async () => {
    const answer = await ask("maps", files[0]), found = await answer.json();
    one("#maps").hidden = !answer.ok;
    if (!answer.ok) return;
    const [height, width] = found.size;
    one("#layer").textContent = `${found.layer} makes maps of ${height} x ${width} of ${files[0].name}: click a number.`;
    one("#grid").replaceChildren(...found.maps.map((source, channel) => {
      const map = picture(source, `map ${channel}`);
      map.addEventListener("click", async event => {
        const row = Math.min(Math.floor(event.offsetY / map.clientHeight * height), height - 1);
        const column = Math.min(Math.floor(event.offsetX / map.clientWidth * width), width - 1);
        const number = await (await ask(`number?channel=${channel}&row=${row}&column=${column}`, files[0])).json();
        one("#number").replaceChildren(picture(number.figure, `map ${channel}, row ${row}, column ${column}: ${number.value}`));
      });
      return map;
    }));
    one("#number").replaceChildren();
  };
  const take = list => {
    files = [...list].slice(0, 24);
    show();
    if (files.length) look();
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
