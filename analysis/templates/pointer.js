// Shows the value of the nearest point of a line under the pointer. The figures are whole without it.
(function () {
  "use strict";
  var REACH = 24;  // in the figure's units, points
  var figures = JSON.parse(document.getElementById("pointers").textContent);
  var label = document.createElement("div");
  label.className = "pointer";
  label.setAttribute("role", "status");
  label.hidden = true;
  document.body.appendChild(label);

  function place(axis, from, to) {
    var scale = axis.log ? Math.log : Number, low = scale(axis.limits[0]), high = scale(axis.limits[1]);
    return function (value) { return from + (to - from) * (scale(value) - low) / (high - low); };
  }
  function hidden(run) {
    if (run === null) { return false; }
    var box = document.querySelector(".picker input[value='" + run + "']");
    return box !== null && !box.checked;
  }
  function text(value) {
    return Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3)
      ? value.toExponential(3) : value.toLocaleString("en", { maximumSignificantDigits: 5 });
  }
  function named(name, value) { return name ? " · " + name + " " + text(value) : ""; }
  function nearest(panels, at) {
    var found = null;
    panels.forEach(function (panel) {
      var box = panel.box;
      if (at.x < box[0] - 4 || at.x > box[2] + 4 || at.y < box[1] - 4 || at.y > box[3] + 4) { return; }
      var toX = place(panel.x, box[0], box[2]), toY = place(panel.y, box[3], box[1]);
      panel.lines.forEach(function (line) {
        if (hidden(line.run)) { return; }
        line.y.forEach(function (value, index) {
          if (value === null || line.x[index] === null) { return; }
          var x = toX(line.x[index]), y = toY(value);
          if (y < box[1] - 1 || y > box[3] + 1) { return; }
          var distance = Math.hypot(x - at.x, y - at.y);
          if (distance < REACH && (!found || distance < found.distance)) {
            found = { distance: distance, x: x, y: y, panel: panel, line: line, index: index };
          }
        });
      });
    });
    return found;
  }
  Object.keys(figures).forEach(function (name) {
    var figure = document.getElementById(name), svg = figure && figure.querySelector("svg");
    if (!svg) { return; }
    var dot = document.createElementNS(svg.namespaceURI, "circle");
    dot.setAttribute("r", "4");
    dot.setAttribute("class", "dot");
    dot.style.display = "none";
    svg.appendChild(dot);
    function leave() { dot.style.display = "none"; label.hidden = true; }
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", function (event) {
      var point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      var hit = nearest(figures[name], point);
      if (!hit) { leave(); return; }
      dot.setAttribute("cx", hit.x);
      dot.setAttribute("cy", hit.y);
      dot.style.display = "";
      label.textContent = hit.line.label + named(hit.panel.x.name, hit.line.x[hit.index]) +
        named(hit.panel.y.name, hit.line.y[hit.index]);
      label.hidden = false;
      label.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - label.offsetWidth - 8)) + "px";
      label.style.top = Math.max(8, event.clientY - label.offsetHeight - 12) + "px";
    });
  });
})();
