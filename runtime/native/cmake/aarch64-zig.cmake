# Toolchain: tlc-run and libtlc_runtime for 64-bit ARM boards with glibc 2.27 (JetPack 4.6, Ubuntu 18.04) and later, from
# any machine that `pip install ziglang` works on:
#
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=runtime/native/cmake/aarch64-zig.cmake -DTLC_BUILD_TESTS=OFF
#
# Zig brings Clang, the headers of every glibc, and a C++ library that it links statically, so nothing but glibc is asked
# of the board. docs/cross.md has the rest. Needs CMake 3.19 or later, on this machine alone.

set(TLC_ZIG "" CACHE FILEPATH "The zig program; empty: that of the Python package ziglang, else the one on the path")
set(TLC_ZIG_TARGET aarch64-linux-gnu.2.27 CACHE STRING "Zig's name of the board, with the oldest glibc to run on")
set(TLC_SYSROOT "" CACHE PATH "Folder with the board's usr/include and usr/lib: static libjpeg, libpng and libz")
# CMake reads this file again, without the cache, for each of its own trials of the compiler.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES TLC_ZIG TLC_ZIG_TARGET TLC_SYSROOT)

if(NOT TLC_ZIG)
  foreach(python "${TLC_PYTHON}" python3 python)
    if(python AND NOT TLC_ZIG)
      execute_process(
        COMMAND "${python}" -c "import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'))"
        OUTPUT_VARIABLE TLC_ZIG OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endforeach()
endif()
if(NOT TLC_ZIG)
  find_program(TLC_ZIG_FOUND zig)
  set(TLC_ZIG "${TLC_ZIG_FOUND}")
endif()
if(NOT TLC_ZIG)
  message(FATAL_ERROR "No zig here: pip install ziglang, or set TLC_ZIG to the program")
endif()

set(CMAKE_SYSTEM_NAME Linux)
string(REGEX REPLACE "-.*$" "" CMAKE_SYSTEM_PROCESSOR "${TLC_ZIG_TARGET}")
string(REGEX REPLACE "\\.[0-9.]+$" "" CMAKE_LIBRARY_ARCHITECTURE "${TLC_ZIG_TARGET}")
set(CMAKE_C_COMPILER "${TLC_ZIG}" cc -target ${TLC_ZIG_TARGET})
set(CMAKE_CXX_COMPILER "${TLC_ZIG}" c++ -target ${TLC_ZIG_TARGET})
# CMake takes programs without arguments for these.
foreach(language C CXX)
  set(CMAKE_${language}_ARCHIVE_CREATE "\"${TLC_ZIG}\" ar qc <TARGET> <LINK_FLAGS> <OBJECTS>")
  set(CMAKE_${language}_ARCHIVE_APPEND "\"${TLC_ZIG}\" ar q <TARGET> <LINK_FLAGS> <OBJECTS>")
  set(CMAKE_${language}_ARCHIVE_FINISH "\"${TLC_ZIG}\" ranlib <TARGET>")
endforeach()
set(CMAKE_EXE_LINKER_FLAGS_INIT "-s")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s")

# What is found must be the board's, never this machine's, and linked in, since boards differ in what they have.
set(CMAKE_FIND_ROOT_PATH "${TLC_SYSROOT}")
if(NOT TLC_SYSROOT)
  set(CMAKE_FIND_ROOT_PATH "${CMAKE_CURRENT_LIST_DIR}/no-sysroot")
endif()
# Debian keeps jconfig.h here; behind Zig's own headers, should the folder have a glibc's too.
set(CMAKE_CXX_FLAGS_INIT "-idirafter \"${TLC_SYSROOT}/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}\"")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_FIND_LIBRARY_SUFFIXES .a)
