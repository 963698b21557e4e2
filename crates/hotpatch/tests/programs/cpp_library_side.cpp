// The library of cpp_library.cpp.
#include <string>

#ifdef FIXED
__attribute__((noinline)) std::string text() {
    static std::string said("4");
    static int times;
    return said + " " + std::to_string(++times);
}
#else
__attribute__((noinline)) std::string text() { return "3"; }
#endif
