"""Write the generated parts of docs/."""

from tests.reference.pages import wanted

if __name__ == "__main__":
    for file, text in wanted().items():
        file.write_text(text, "utf-8")
