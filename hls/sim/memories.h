// The contents of the design's memories, built into the library: what $readmemh would read from files.
#pragma once

struct MemoryFile {
    const char *name;  // without folders
    const char *text;  // hexadecimal words
};

extern const MemoryFile memory_files[];  // ends with a null name
