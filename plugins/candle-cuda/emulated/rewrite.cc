// Reads a preprocessed .cu file and writes C++: shared variables become references to the runner's storage, and the file's
// kernels are listed at its end. Works on words, so that it needs no more of C++ than where a declaration ends.
//
//   rewrite NAME < preprocessed > plain C++
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

using std::string;

namespace {

const string SHARED = "EMULATED_SHARED", KERNEL = "EMULATED_KERNEL", BOUNDS = "EMULATED_BOUNDS";

struct Kernel {
    string name, max_threads;
};

[[noreturn]] void stop(const string& why, const string& text) {
    std::cerr << "rewrite: " << why << ": " << text.substr(0, 200) << "\n";
    exit(1);
}

bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

string trimmed(const string& text) {
    size_t from = text.find_first_not_of(" \t\n"), to = text.find_last_not_of(" \t\n");
    return from == string::npos ? "" : text.substr(from, to - from + 1);
}

// The place behind white space and the preprocessor's lines.
size_t skip_blank(const string& text, size_t at) {
    while (at < text.size() && (isspace(static_cast<unsigned char>(text[at])) || text[at] == '#')) {
        if (text[at] == '#') at = text.find('\n', at);
        at++;
    }
    return at;
}

// The place behind the bracket that closes the one at `at`.
size_t skip_brackets(const string& text, size_t at) {
    int depth = 0;
    for (; at < text.size(); at++) {
        depth += text[at] == '(' || text[at] == '{' || text[at] == '[';
        depth -= text[at] == ')' || text[at] == '}' || text[at] == ']';
        if (depth == 0) return at + 1;
    }
    stop("a bracket is never closed", "");
}

string take_word(const string& text, size_t& at) {
    at = skip_blank(text, at);
    size_t from = at;
    while (at < text.size() && is_word(text[at])) at++;
    return text.substr(from, at - from);
}

// Takes `__attribute__((aligned(N)))` or `alignas(N)` out of a declaration and returns N, or nothing.
string take_alignment(string& declaration) {
    for (const string& word : {string("__attribute__"), string("alignas")}) {
        size_t at = declaration.find(word);
        if (at == string::npos) continue;
        size_t open = declaration.find('(', at), end = skip_brackets(declaration, open);
        string inside = declaration.substr(open, end - open);
        declaration.erase(at, end - at);
        size_t aligned = inside.find("aligned");
        if (aligned != string::npos) {
            size_t from = inside.find('(', aligned);
            inside = inside.substr(from, skip_brackets(inside, from) - from);
        }
        return inside;
    }
    return "";
}

std::vector<string> split_declarators(const string& declaration) {
    std::vector<string> parts = {""};
    int depth = 0;
    for (char c : declaration) {
        depth += c == '<' || c == '(' || c == '[';
        depth -= c == '>' || c == ')' || c == ']';
        if (c == ',' && depth == 0) parts.emplace_back();
        else parts.back() += c;
    }
    return parts;
}

// One declarator, `TYPE NAME[..]..` with the type given apart for all but the first.
string shared_variable(const string& type, const string& name, const string& extents, const string& alignment) {
    string alias = "emulated_type_" + name, owner = "emulated_owner_" + name;
    string aligned = alignment.empty() ? "alignof(" + alias + ")" : alignment;
    return "using " + alias + " = " + type + extents + "; static char " + owner + "; " + alias + "& " + name + " = *static_cast<" +
           alias + "*>(::emulated::shared_variable(&" + owner + ", \"" + name + "\", sizeof(" + alias + "), " + aligned + "));";
}

// Takes the preprocessor's lines out of a declaration that macros were used in, and returns the last: what follows the
// declaration is still on the line that it says.
string take_line_marks(string& declaration) {
    string last;
    for (size_t at; (at = declaration.find("\n#")) != string::npos;) {
        size_t end = declaration.find('\n', at + 1);
        if (end == string::npos) end = declaration.size();
        last = declaration.substr(at, end - at);
        declaration.replace(at, end - at, " ");
    }
    return last.empty() ? "" : last + "\n";
}

string rewrite_shared(string declaration, bool dynamic) {
    string line_mark = take_line_marks(declaration);
    string alignment = take_alignment(declaration), type, written;
    for (string declarator : split_declarators(declaration)) {
        declarator = trimmed(declarator);
        size_t bracket = declarator.find('[');
        string head = trimmed(declarator.substr(0, bracket));
        string extents = bracket == string::npos ? "" : declarator.substr(bracket);
        size_t name_at = head.size();
        while (name_at > 0 && is_word(head[name_at - 1])) name_at--;
        string name = head.substr(name_at);
        if (type.empty()) type = trimmed(head.substr(0, name_at));
        if (name.empty() || type.empty()) stop("a shared variable that is not understood", declaration);
        if (dynamic) written += type + "* const " + name + " = static_cast<" + type + "*>(::emulated::shared_dynamic());";
        else written += shared_variable(type, name, extents, alignment);
    }
    return written + line_mark;
}

// Removes a last word `extern` from what is written so far: then the declaration is of dynamic shared memory.
bool take_extern(string& written) {
    size_t end = written.find_last_not_of(" \t\n") + 1;
    if (end < 6 || written.compare(end - 6, 6, "extern") != 0) return false;
    written.resize(end - 6);
    return true;
}

// Reads `[bounds] void [bounds] NAME`, and puts it down if it is extern "C": templates have no name for the driver.
Kernel read_kernel(const string& text, size_t at) {
    Kernel kernel = {"", "0"};
    for (;;) {
        string word = take_word(text, at);
        if (word == BOUNDS) {
            size_t open = skip_blank(text, at), end = skip_brackets(text, open);
            kernel.max_threads = split_declarators(text.substr(open + 1, end - open - 2))[0];
            at = end;
        } else if (word == "__attribute__") {
            at = skip_brackets(text, skip_blank(text, at));
        } else if (word == "void" || word == "static" || word == "inline") {
            continue;
        } else if (word.empty()) {
            stop("a kernel that is not understood", text.substr(at, 100));
        } else {
            kernel.name = word;
            return kernel;
        }
    }
}

bool is_extern_c(const string& written) {
    string tail = trimmed(written.size() > 64 ? written.substr(written.size() - 64) : written);
    return tail.size() >= 10 && tail.compare(tail.size() - 10, 10, "extern \"C\"") == 0;
}

void list_kernels(const std::vector<Kernel>& kernels, const char* source) {
    if (kernels.empty()) return;
    printf("\nnamespace emulated { namespace {\nconst Kernel kernels_here[] = {\n");
    for (const Kernel& kernel : kernels) {
        const char* name = kernel.name.c_str();
        printf("    {\"%s\", Unpack<&::%s>::call, Unpack<&::%s>::COUNT, Unpack<&::%s>::SIZES, %s},\n", name, name, name, name,
               kernel.max_threads.c_str());
    }
    printf("};\nconst Added added_here(\"%s\", kernels_here, %zu);\n} }\n", source, kernels.size());
}

}  // namespace

int main(int, char** arguments) {
    string text(std::istreambuf_iterator<char>(std::cin), {}), written;
    std::vector<Kernel> kernels;
    for (size_t at = 0; at < text.size();) {
        if (!is_word(text[at])) {
            written += text[at++];
            continue;
        }
        string word = take_word(text, at);
        if (word == SHARED) {
            size_t end = text.find(';', at);
            bool dynamic = take_extern(written);
            written += rewrite_shared(text.substr(at, end - at), dynamic);
            at = end + 1;
        } else if (word == KERNEL) {
            if (is_extern_c(written)) kernels.push_back(read_kernel(text, at));
        } else if (word == BOUNDS) {
            at = skip_brackets(text, skip_blank(text, at));
        } else {
            written += word;
        }
    }
    fwrite(written.data(), 1, written.size(), stdout);
    list_kernels(kernels, arguments[1]);
}
