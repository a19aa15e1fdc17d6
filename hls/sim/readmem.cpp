// $readmemh from the library itself. The model is compiled with VL_READMEM_N renamed to wb_readmem.
#include <cctype>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "memories.h"

namespace {

const char *find(const std::string &path) {
    const std::string name = path.substr(path.rfind('/') + 1);
    for (const MemoryFile *file = memory_files; file->name; ++file)
        if (name == file->name) return file->text;
    throw std::runtime_error("the memory file " + name + " is not built into this library");
}

size_t element_bytes(int bits) {  // as Verilator lays out an array of `bits` wide words
    return bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : bits <= 64 ? 8 : (bits + 31) / 32 * 4;
}

int digit(char c) {
    if (std::isdigit(static_cast<unsigned char>(c))) return c - '0';
    return std::tolower(static_cast<unsigned char>(c)) - 'a' + 10;
}

}  // namespace

void wb_readmem(bool, int bits, uint64_t depth, int, const std::string &path, void *array, uint64_t, uint64_t) {
    const size_t bytes = element_bytes(bits);
    auto *element = static_cast<unsigned char *>(array);
    const char *word = find(path);
    for (uint64_t i = 0;; ++i, element += bytes) {
        word += std::strspn(word, " \t\r\n");
        const size_t digits = std::strspn(word, "0123456789abcdefABCDEF");
        if (!*word) return;
        if (i == depth || digits == 0 || digits > 2 * bytes)
            throw std::runtime_error("the memory file of " + path + " does not fit its memory");
        std::memset(element, 0, bytes);
        for (size_t d = 0; d < digits; ++d)  // little-endian, on both machines
            element[d / 2] |= static_cast<unsigned char>(digit(word[digits - 1 - d]) << 4 * (d % 2));
        word += digits;
    }
}
