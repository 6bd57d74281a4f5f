// Makes the headings of tables buttons that sort their rows, and adds a filter to long tables. The page is whole without it.
(function () {
  "use strict";
  function compare(a, b) {
    if (a === "" || b === "") { return a === b ? 0 : a === "" ? 1 : -1; }
    var difference = Number(a) - Number(b);
    return isNaN(difference) ? (a < b ? -1 : a > b ? 1 : 0) : difference;
  }
  function sortBy(table, column, direction) {
    var missingLast = function (a, b) { return a === "" || b === "" ? compare(a, b) : direction * compare(a, b); };
    var key = function (body) {
      var cell = body.rows[0].cells[column];
      return cell.dataset.sort === undefined ? cell.textContent : cell.dataset.sort;
    };
    Array.from(table.tBodies)
      .sort(function (a, b) { return missingLast(key(a), key(b)); })
      .forEach(function (body) { table.appendChild(body); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    if (table.tBodies.length > 8) {
      var filter = document.createElement("input");
      filter.type = "search";
      filter.className = "filter";
      filter.placeholder = "Filter rows";
      filter.setAttribute("aria-label", "Filter the rows of " + table.getAttribute("aria-label"));
      filter.addEventListener("input", function () {
        var words = filter.value.toLowerCase().split(/\s+/);
        Array.from(table.tBodies).forEach(function (body) {
          var text = body.textContent.toLowerCase();
          body.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        });
      });
      table.parentNode.before(filter);
    }
    var headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach(function (heading, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.textContent = "";
      heading.appendChild(button);
      button.addEventListener("click", function () {
        var ascending = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach(function (other) { other.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortBy(table, column, ascending ? 1 : -1);
      });
    });
  });
})();
