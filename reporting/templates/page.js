"use strict";
(() => {
  // Results: rows behind the first one of each stage.
  for (const button of document.querySelectorAll(".fold")) {
    const rest = button.closest("tbody").nextElementSibling;
    const set = (open) => {
      rest.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      button.textContent = `${open ? "−" : "+"} ${button.dataset.rows}`;
    };
    button.hidden = false;
    button.addEventListener("click", () => set(rest.hidden));
    set(false);
  }

  const source = document.getElementById("images");
  if (!source) return;
  const images = JSON.parse(source.textContent);
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const byId = (id) => document.getElementById(id);
  const cards = byId("cards"), sort = byId("sort"), ofClass = byId("class"), only = byId("only"), name = byId("name");
  const zoom = byId("zoom"), stage = byId("zoom-stage"), size = byId("zoom-size");
  const PRINTED = 12;
  let shown = []; // images in the order of the cards
  let current = 0, panel = 0; // of the zoom

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const address = (image, key) => {
    const { mime } = panels.find((one) => one.key === key);
    return `data:${mime};base64,${image.pictures[key]}`;
  };
  const picture = (image, key, title) => {
    const stack = element("span", "stack");
    stack.style.aspectRatio = `${image.size[1]} / ${image.size[0]}`;
    for (const layer of key === "image" ? ["image"] : ["image", key]) {
      const img = element("img", layer === "image" ? "" : "over");
      img.decoding = "async";
      img.alt = layer === "image" ? `${title} of ${image.name}` : "";
      img.src = address(image, layer);
      stack.append(img);
    }
    return stack;
  };

  // Cards: text at once, pictures when they come near the window.
  const fill = (card) => {
    const strip = card.querySelector(".strip");
    if (strip.childElementCount) return;
    const image = card.image;
    for (const { key, title } of panels) {
      const figure = element("figure");
      if (image.pictures[key] !== undefined) {
        figure.append(picture(image, key, title));
        figure.addEventListener("click", () => open(image, key));
      } else {
        const gap = element("span", "stack");
        gap.style.aspectRatio = `${image.size[1]} / ${image.size[0]}`;
        figure.append(gap);
      }
      figure.append(element("figcaption", "", image.pictures[key] === undefined ? `no ${title}` : title));
      strip.append(figure);
    }
    strip.style.minHeight = "";
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { fill(entry.target); near.unobserve(entry.target); }
  }, { rootMargin: "800px" });

  const cardOf = (image) => {
    const card = element("article", "card");
    const head = element("h3"), button = element("button", "open link", image.name);
    button.type = "button";
    button.addEventListener("click", () => open(image, ""));
    head.append(button);
    const strip = element("div", "strip");
    strip.style.setProperty("--panels", panels.length);
    strip.style.minHeight = "6rem";
    card.append(head, element("p", "caption", image.caption), strip);
    card.image = image;
    near.observe(card);
    return card;
  };
  const made = new Map(images.map((image) => [image.name, cardOf(image)]));

  const compare = (key) => (a, b) => {
    const [x, y] = [a.order[key] ?? Infinity, b.order[key] ?? Infinity];
    if (key !== "name" && x !== y) return x < y ? -1 : 1;
    return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
  };
  const update = () => {
    const wanted = [ofClass.value, only.value].filter(Boolean), part = name.value.toLowerCase();
    shown = images.filter((image) => wanted.every((tag) => image.tags.includes(tag)) &&
      image.name.toLowerCase().includes(part)).sort(compare(sort.value));
    cards.replaceChildren(...shown.map((image) => made.get(image.name)));
    byId("shown").textContent = `${shown.length} of ${images.length} images`;
  };
  for (const control of [sort, ofClass, only]) control.addEventListener("change", update);
  name.addEventListener("input", update);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  const sliders = document.querySelectorAll(".opacity");
  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      document.documentElement.style.setProperty("--opacity", slider.value / 100);
      for (const other of sliders) other.value = slider.value;
    });
  }

  cards.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const card = event.target.closest(".card");
    if (!step || !card) return;
    event.preventDefault();
    const next = step > 0 ? card.nextElementSibling : card.previousElementSibling;
    if (next) next.querySelector(".open").focus();
  });
  window.addEventListener("beforeprint", () => {
    for (const card of [...cards.children].slice(0, PRINTED)) fill(card);
  });

  // One image, large.
  const has = (image) => panels.filter(({ key }) => image.pictures[key] !== undefined);
  const draw = () => {
    const image = shown[current], there = has(image);
    panel = Math.min(panel, there.length - 1);
    const { key, title } = there[panel];
    byId("zoom-title").textContent = image.name;
    byId("zoom-caption").textContent = image.caption;
    byId("zoom-panels").replaceChildren(...there.map((one, place) => {
      const button = element("button", "", `${place + 1} ${one.title}`);
      button.type = "button";
      button.setAttribute("aria-pressed", String(place === panel));
      button.addEventListener("click", () => { panel = place; draw(); byId("zoom-panels").children[place].focus(); });
      return button;
    }));
    stage.replaceChildren(picture(image, key, title));
    resize();
  };
  const resize = () => {
    const stack = stage.firstElementChild, image = shown[current];
    const width = Math.min(stage.clientWidth, stage.clientHeight * image.size[1] / image.size[0]);
    stack.style.width = `${Math.max(80, width) * size.value}px`;
  };
  const open = (image, key) => {
    if (!shown.includes(image)) {
      ofClass.value = only.value = name.value = "";
      update();
    }
    current = shown.indexOf(image);
    const place = has(image).findIndex((one) => one.key === (key || "prediction"));
    panel = Math.max(0, place);
    size.value = 1;
    zoom.showModal();
    draw();
    stage.focus();
  };
  const move = (step) => {
    current = (current + step + shown.length) % shown.length;
    draw();
  };
  const enlarge = (step) => { size.value = Number(size.value) + step; resize(); };
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("close").addEventListener("click", () => zoom.close());
  size.addEventListener("input", resize);
  window.addEventListener("resize", () => { if (zoom.open) resize(); });
  zoom.addEventListener("close", () => {
    const card = made.get(shown[current].name);
    card.querySelector(".open").focus();
  });
  zoom.addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = Number(event.key) - 1;
    if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else if (event.key === "+" || event.key === "=") enlarge(0.5);
    else if (event.key === "-") enlarge(-0.5);
    else if (digit >= 0 && digit < has(shown[current]).length) { panel = digit; draw(); }
    else return;
    event.preventDefault();
  });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // pinch, or Ctrl and the wheel
    event.preventDefault();
    enlarge(event.deltaY < 0 ? 0.5 : -0.5);
  }, { passive: false });

  // The first screen's images open too.
  for (const button of document.querySelectorAll(".open[data-name]")) {
    const card = made.get(button.dataset.name);
    if (!card) continue;
    button.hidden = false;
    button.nextElementSibling.hidden = true;
    button.addEventListener("click", () => open(card.image, ""));
  }
  update();
})();
