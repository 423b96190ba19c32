@echo off
rem Starts the sandbox, and keeps this window open with what it says.
pushd "%~dp0"
if exist wxopenid.exe (.\wxopenid.exe -sandbox) else echo Extract the whole archive first, then start sandbox.cmd in its folder wxopenid.
pause
