# libtlc_runtime: the C API, and what an application needs to find it: header, pkg-config, CMake package.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

add_library(tlc_runtime SHARED runtime/native/capi.cc)
target_link_libraries(tlc_runtime PRIVATE tlc_native)
target_include_directories(tlc_runtime INTERFACE
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
# The number is the interface's, not tlc's: see TLC_RUNTIME_API_VERSION.
set_target_properties(tlc_runtime PROPERTIES VERSION 1 SOVERSION 1)
if(UNIX AND NOT APPLE)
  # Hidden visibility leaves the C++ library's templates and what is linked in statically: export the API alone.
  set(TLC_MAP "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/cmake/tlc_runtime.map")
  set_target_properties(tlc_runtime PROPERTIES LINK_FLAGS "-Wl,--version-script=\"${TLC_MAP}\"" LINK_DEPENDS "${TLC_MAP}")
endif()

# The folder may be moved after installing, so its parts find each other by relative paths.
file(RELATIVE_PATH TLC_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" TLC_PC_TO_PREFIX "${TLC_PC_TO_PREFIX}")
configure_file(runtime/native/cmake/tlc_runtime.pc.in tlc_runtime.pc @ONLY)
write_basic_package_version_file(tlc_runtimeConfigVersion.cmake VERSION "${TLC_VERSION}" COMPATIBILITY SameMajorVersion)

install(TARGETS tlc_runtime EXPORT tlc_runtime
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}"
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES runtime/native/include/tlc_runtime.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/tlc_runtime.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(EXPORT tlc_runtime NAMESPACE tlc_runtime:: FILE tlc_runtimeConfig.cmake
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/tlc_runtime")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/tlc_runtimeConfigVersion.cmake"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/tlc_runtime")

if(TLC_BUILD_TESTS)
  # Asked by tests/native/test_capi.py; in C, as an application may be.
  enable_language(C)
  add_executable(tlc_capi_threads tests/native/capi_threads.c)
  set_target_properties(tlc_capi_threads PROPERTIES C_STANDARD 99)
  target_link_libraries(tlc_capi_threads PRIVATE tlc_runtime Threads::Threads)
endif()
